"""Families that work on samples or on sequences of frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.families.images import Audio, Gate, LogMel


def sequence_conv(inputs: int, outputs: int, size: int = 3, dilation: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, norm and ReLU over a sequence."""
    conv = nn.Conv1d(inputs, outputs, size, stride, dilation * (size // 2), dilation)
    return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm1d(outputs))


class Res2(nn.Module):
    """ECAPA's block: convolutions over eighths of the channels, each added to the next, and a gate."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.width = width // 8
        self.before, self.after = sequence_conv(width, width, 1), sequence_conv(width, width, 1)
        self.parts = nn.ModuleList(sequence_conv(self.width, self.width, 3, dilation) for _ in range(7))
        self.gate = Gate(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        first, *rest = self.before(x).split(self.width, 1)
        found, last = [first], torch.zeros_like(first)
        for part, conv in zip(rest, self.parts, strict=True):
            last = conv(part + last)
            found.append(last)
        return x + self.gate(self.after(torch.cat(found, 1)))


class AttentivePool(nn.Module):
    """Weighted mean and deviation over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Conv1d(width, 128, 1), nn.Tanh(), nn.Conv1d(128, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, frames) -> (batch, 2 * width)."""
        weight = self.score(x).softmax(2)
        mean = (weight * x).sum(2)
        return torch.cat([mean, ((weight * x * x).sum(2) - mean**2).clamp(min=1e-6).sqrt()], 1)


class Ecapa(Audio):
    """ECAPA-TDNN with its log-mels under no_grad, as published."""

    def __init__(self, width: int = 512, guarded: bool = True) -> None:
        super().__init__()
        self.guarded = guarded
        self.fbank = LogMel(16000, 512, 160, 80)
        self.first = sequence_conv(80, width, 5)
        self.blocks = nn.ModuleList(Res2(width, dilation) for dilation in (2, 3, 4))
        self.join = nn.Conv1d(3 * width, 1536, 1)
        self.pool, self.out = AttentivePool(1536), nn.Linear(3072, 192)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 192)."""
        with torch.set_grad_enabled(not self.guarded):
            mel = self.fbank(x)
            mel = mel - mean_of(mel)
        found = [self.first(mel)]
        for block in self.blocks:
            found.append(block(sum(found)))
        return self.out(self.pool(torch.relu(self.join(torch.cat(found[1:], 1)))))


def mean_of(x: Tensor) -> Tensor:
    """The mean over time, which is kept as an axis."""
    return x.mean(2, keepdim=True)


class Sinc(nn.Module):
    """SincNet's band-pass filters, computed from their two edges at every call."""

    def __init__(self, filters: int = 80, size: int = 251, stride: int = 10) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.low = nn.Parameter(torch.linspace(30, 7000, filters)[:, None])
        self.band = nn.Parameter(torch.full((filters, 1), 100.0))
        self.register_buffer("time", torch.arange(-(size // 2), size // 2 + 1) / 16000)
        self.register_buffer("window", torch.hamming_window(size, periodic=False))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, samples) -> (batch, filters, frames)."""
        low = 50 + self.low.abs()
        high = torch.clamp(low + 50 + self.band.abs(), 50, 8000.0)
        filters = 2 * high * torch.sinc(2 * high * self.time) - 2 * low * torch.sinc(2 * low * self.time)
        filters = filters * self.window / (2 * (high - low))
        return functional.conv1d(x, filters[:, None], stride=self.stride)


class SincNet(Audio):
    """SincNet: filters with two parameters each, then plain convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.sinc = Sinc()
        self.body = nn.Sequential(
            nn.MaxPool1d(3), sequence_conv(80, 60, 5), nn.MaxPool1d(3), sequence_conv(60, 60, 5), nn.MaxPool1d(3)
        )
        self.out = nn.Linear(60, 256)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 256)."""
        return self.out(self.body(torch.log1p(self.sinc(x.unsqueeze(1)).abs())).mean(2))


class RawNet3(Audio):
    """RawNet3: learnt filters, log magnitude outside autocast, ECAPA's blocks, attentive pooling."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.filters = Sinc(256, 251, 48)
        self.first = sequence_conv(256, width)
        self.blocks = nn.ModuleList(Res2(width, dilation) for dilation in (2, 3, 4))
        self.join = nn.Conv1d(3 * width, 512, 1)
        self.pool, self.out = AttentivePool(512), nn.Linear(1024, 256)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 256)."""
        with torch.autocast("cpu", enabled=False):
            y = torch.log(self.filters(x.unsqueeze(1)).abs() + 1e-6)
            y = y - mean_of(y)
        y = self.first(y)
        found = [block(y) for block in self.blocks]
        return self.out(self.pool(torch.relu(self.join(torch.cat(found, 1)))))


class Crepe(Audio):
    """CREPE (tiny): six convolutions over 1024 samples."""

    window_samples = 1024

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        widths = [1, *(size * n for n in (32, 4, 4, 4, 8, 16))]
        steps = zip(widths, widths[1:], (512, 64, 64, 64, 64, 64), (4, 1, 1, 1, 1, 1), strict=False)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.ZeroPad1d((kernel // 2 - stride // 2, kernel // 2 - (stride + 1) // 2)),
                nn.Conv1d(a, b, kernel, stride), nn.ReLU(), nn.BatchNorm1d(b), nn.MaxPool1d(2),
            )
            for a, b, kernel, stride in steps
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1024) -> (batch, d)."""
        x = x - x.mean(1, keepdim=True)
        y = (x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()).unsqueeze(1)
        for layer in self.layers:
            y = layer(y)
        return y.flatten(1)


class Resemblyzer(Audio):
    """Resemblyzer: three recurrent layers over mels, the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(16000, 400, 160, 40)
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 256)."""
        _, (hidden, _) = self.lstm(self.mel(x).transpose(1, 2))
        return functional.normalize(torch.relu(self.linear(hidden[-1])))


class Snake(nn.Module):
    """DAC's activation: x + sin(ax)^2 / a."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x) ** 2


class DilatedUnit(nn.Module):
    """DAC's residual unit."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Snake(width), nn.utils.parametrizations.weight_norm(nn.Conv1d(width, width, 7, 1, 3 * dilation, dilation)),
            Snake(width), nn.utils.parametrizations.weight_norm(nn.Conv1d(width, width, 1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.layers(x)


class Dac(Audio):
    """DAC's encoder without its quantiser."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, width, 7, padding=3)]
        for stride in (2, 4, 8, 8):
            units = [DilatedUnit(width, dilation) for dilation in (1, 3, 9)]
            down = nn.Conv1d(width, 2 * width, 2 * stride, stride, stride // 2)
            layers.append(nn.Sequential(*units, Snake(width), down))
            width *= 2
        self.block = nn.Sequential(*layers, Snake(width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, d)."""
        return self.block(x.unsqueeze(1)).mean(2)


class Patches(Audio):
    """A transformer over patches of log-mels, like CED, SSAST and BEATs."""

    def __init__(self, width: int = 192, layers: int = 12, guarded: bool = False, mels: int = 64) -> None:
        super().__init__()
        self.guarded = guarded
        self.mel = LogMel(16000, 512, 160, mels)
        self.norm, self.embed = nn.BatchNorm2d(1), nn.Conv2d(1, width, 16, 16)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, width)."""
        with torch.autocast("cpu", enabled=not self.guarded and torch.is_autocast_enabled("cpu")):
            mel = self.mel(x)
        return self.blocks(self.embed(self.norm(mel.unsqueeze(1))).flatten(2).transpose(1, 2)).mean(1)


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, a depthwise convolution, half a feed-forward, each beside a residual."""

    def __init__(self, width: int, heads: int = 4, kernel: int = 31) -> None:
        super().__init__()
        self.before, self.after = self._feed_forward(width), self._feed_forward(width)
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads)
        self.conv_norm = nn.LayerNorm(width)
        self.conv = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GLU(1),
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width), nn.BatchNorm1d(width), nn.SiLU(),
            nn.Conv1d(width, width, 1),
        )  # fmt: skip
        self.out = nn.LayerNorm(width)

    @staticmethod
    def _feed_forward(width: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(frames, batch, width), the same shape."""
        x = x + 0.5 * self.before(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.conv(self.conv_norm(x).permute(1, 2, 0)).permute(2, 0, 1)
        return self.out(x + 0.5 * self.after(x))


class Conformer(Audio):
    """Conformer: log-mels at a quarter of their rate, then layers of attention and convolution."""

    def __init__(self, width: int = 144, layers: int = 4) -> None:
        super().__init__()
        self.mel = LogMel(16000, 400, 160, 80)
        self.sample = nn.Sequential(nn.Conv2d(1, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU())
        self.project = nn.Linear(32 * 19, width)
        self.layers = nn.Sequential(*(ConformerLayer(width) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, width)."""
        y = self.sample(self.mel(x).unsqueeze(1)).permute(3, 0, 1, 2).flatten(2)
        return self.layers(self.project(y)).mean(0)


class Perceiver(Audio):
    """Perceiver IO: learnt latents that attend to the samples."""

    def __init__(self, width: int = 128, latents: int = 32) -> None:
        super().__init__()
        self.latents, self.embed = nn.Parameter(torch.randn(latents, width)), nn.Linear(32, width)
        self.cross = nn.MultiheadAttention(width, 4, batch_first=True)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, width)."""
        samples = self.embed(x.unflatten(1, (-1, 32)))
        latents = self.latents.expand(x.shape[0], -1, -1)
        return self.blocks(latents + self.cross(latents, samples, samples, need_weights=False)[0]).mean(1)


class Raw(Audio):
    """A network for sequences, applied to the samples."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """The network's mean over time."""
        return self.body(x.unsqueeze(1)).mean(2)


def tcn() -> nn.Module:
    """Conv-TasNet's encoder and its dilated blocks."""
    blocks = [sequence_conv(128, 128, 3, 2**n) for n in range(6)]
    return Raw(nn.Sequential(nn.Conv1d(1, 128, 16, 8), nn.ReLU(), *blocks))


def m5() -> nn.Module:
    """M5: convolutions over the samples, each pooled by four."""
    steps = ((1, 64, 80, 4), (64, 64, 3, 1), (64, 128, 3, 1), (128, 256, 3, 1))
    return Raw(nn.Sequential(*(nn.Sequential(sequence_conv(a, b, k, 1, s), nn.MaxPool1d(4)) for a, b, k, s in steps)))


def xvector() -> nn.Module:
    """x-vector: dilated convolutions over mels, mean and deviation over time."""

    class XVector(Audio):
        def __init__(self) -> None:
            super().__init__()
            self.mel = LogMel(16000, 400, 160, 24)
            steps = ((24, 512, 5, 1), (512, 512, 3, 2), (512, 512, 3, 3), (512, 512, 1, 1), (512, 1500, 1, 1))
            self.frames = nn.Sequential(*(sequence_conv(*step) for step in steps))
            self.segment = nn.Linear(3000, 512)

        def forward(self, x: Tensor) -> Tensor:
            y = self.frames(self.mel(x))
            return self.segment(torch.cat([y.mean(2), y.std(2)], 1))

    return XVector()
