"""Families that apply a network for images to log-mels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LogMel(nn.Module):
    """Log-mels by torch.stft and a filter bank, as in most projects: (batch, samples) -> (batch, mels, frames)."""

    def __init__(self, rate: int = 16000, size: int = 512, hop: int = 160, mels: int = 64) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size))
        edges = 700 * (
            10 ** (torch.linspace(0, 2595 * torch.log10(torch.tensor(1 + rate / 1400)), mels + 2) / 2595) - 1
        )
        bins = torch.linspace(0, rate / 2, size // 2 + 1)
        rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
        self.register_buffer("bank", torch.minimum(rise, fall).clamp(min=0))

    def forward(self, x: Tensor) -> Tensor:
        """Natural logarithm of the power in each band."""
        spectrum = torch.stft(x, self.size, self.hop, window=self.window, return_complex=True).abs() ** 2
        return torch.log(torch.matmul(self.bank, spectrum) + 1e-6)


class Audio(nn.Module):
    """Sample rate and window length, which all families below share."""

    sample_rate, window_samples = 16000, 16000


class Image(Audio):
    """A network for images applied to log-mels."""

    def __init__(self, body: nn.Module, mels: int = 64, rate: int = 16000, size: int = 512, hop: int = 160) -> None:
        super().__init__()
        self.sample_rate = self.window_samples = rate
        self.mel, self.body = LogMel(rate, size, hop, mels), body

    def forward(self, x: Tensor) -> Tensor:
        """The network's output averaged over bands and frames, as a unit vector."""
        return functional.normalize(self.body(self.mel(x).unsqueeze(1)).mean((2, 3)))


def norm_conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, norm and ReLU over an image."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Gate(nn.Module):
    """Squeeze and excitation over any number of axes after the channels."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel by a gate computed from the channels' means over all positions."""
        weight = torch.sigmoid(self.up(torch.relu(self.down(x.flatten(2).mean(2)))))
        return x * weight.view(*weight.shape, *[1] * (x.dim() - 2))


class Inverted(nn.Module):
    """MobileNet's inverted residual with a gate."""

    def __init__(self, inputs: int, outputs: int, stride: int, dynamic: bool = False) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.expand, self.depth = norm_conv(inputs, hidden, 1), norm_conv(hidden, hidden, 3, stride, hidden)
        self.gate = Gate(hidden, hidden // 4)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.mix = nn.Conv2d(hidden, 2, 1) if dynamic else None
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter each channel, gate, project."""
        y = self.gate(self.depth(self.expand(x)))
        if self.mix is not None:  # dynamic: a convex mixture of two activations, chosen by the input
            weight = self.mix(y.mean((2, 3), keepdim=True)).softmax(1)
            y = weight[:, :1] * torch.relu(y) + weight[:, 1:] * functional.hardswish(y)
        y = self.project(y)
        return x + y if self.same else y


def mobile(dynamic: bool = False) -> nn.Module:
    """EfficientAT's mn, or its dymn."""
    widths = (16, 16, 24, 24, 40, 40, 80, 80, 112, 160)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 2)
    blocks = [Inverted(a, b, s, dynamic) for a, b, s in zip(widths, widths[1:], strides, strict=False)]
    return Image(nn.Sequential(norm_conv(1, 16, 3, 2), *blocks, norm_conv(160, 960, 1)), 128, 32000, 1024, 320)


def panns(widths: tuple[int, ...]) -> nn.Module:
    """PANNs: pairs of convolutions, each pair pooled."""
    pairs = [
        nn.Sequential(norm_conv(a, b), norm_conv(b, b), nn.AvgPool2d(2))
        for a, b in zip((1, *widths), widths, strict=False)
    ]
    return Image(nn.Sequential(*pairs), 64, 32000, 1024, 320)


class Vggish(Audio):
    """VGG's convolutions, and linear layers over the whole patch."""

    window_samples = 15600

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(16000, 400, 160, 64)
        layers: list[nn.Module] = []
        inputs = 1
        for width, count in ((64, 1), (128, 1), (256, 2), (512, 2)):
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(nn.Linear(512 * 6 * 4, 1024), nn.ReLU(), nn.Linear(1024, 128))

    def forward(self, x: Tensor) -> Tensor:
        """Embed 96 frames of 64 bands."""
        image = self.mel(x).transpose(1, 2)[:, None, :96]
        return self.embeddings(self.features(image).transpose(1, 3).flatten(1))


def yamnet() -> nn.Module:
    """MobileNet v1: depthwise and pointwise convolutions."""
    steps = ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))
    layers = [nn.Sequential(norm_conv(a, a, 3, s, a), norm_conv(a, b, 1)) for a, b, s in (*steps, (512, 1024, 2))]
    return Image(nn.Sequential(norm_conv(1, 32, 3, 2), *layers))


class ByolA(Audio):
    """BYOL-A: convolutions, then a linear layer over bands, mean and maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(16000, 1024, 160, 64)
        pools = [nn.Sequential(norm_conv(a, 64), nn.MaxPool2d(2)) for a in (1, 64, 64)]
        self.features = nn.Sequential(*pools)
        self.fc = nn.Sequential(nn.Linear(64 * 8, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 2048)."""
        y = self.features(self.mel(x).unsqueeze(1)).permute(0, 3, 2, 1).flatten(2)
        y = self.fc(y)
        return y.amax(1) + y.mean(1)


class Residual(nn.Module):
    """Two convolutions, a gate and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = norm_conv(inputs, outputs, 3, stride), norm_conv(outputs, outputs)
        self.gate = Gate(outputs, outputs // 8)
        self.short = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The image, downsampled by the stride."""
        return torch.relu(self.short(x) + self.gate(self.two(self.one(x))))


def resnet_se() -> nn.Module:
    """ResNetSE34 of speaker recognition."""
    steps = ((16, 16, 1), (16, 32, 2), (32, 64, 2), (64, 128, 2))
    return Image(nn.Sequential(norm_conv(1, 16), *(Residual(*step) for step in steps), Residual(128, 128, 1)))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm over channels, two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.body = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.body(self.norm(self.depth(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """ConvNeXt of audio tagging."""
    layers: list[nn.Module] = [nn.Conv2d(1, 48, 4, 4)]
    for width, count in ((48, 2), (96, 2), (192, 4)):
        layers.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(count))))
        if width < 192:
            layers.append(nn.Conv2d(width, 2 * width, 2, 2))
    return Image(nn.Sequential(*layers))


def densenet() -> nn.Module:
    """DenseNet: every layer reads all before it."""

    class Dense(nn.Module):
        def __init__(self, width: int, count: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(norm_conv(width + 16 * n, 16) for n in range(count))

        def forward(self, x: Tensor) -> Tensor:
            found = [x]
            for layer in self.layers:
                found.append(layer(torch.cat(found, 1)))
            return torch.cat(found, 1)

    steps = [nn.Sequential(Dense(w, 6), nn.Conv2d(w + 96, 64, 1), nn.AvgPool2d(2)) for w in (32, 64, 64)]
    return Image(nn.Sequential(norm_conv(1, 32, 7, 2), *steps))


def crnn() -> nn.Module:
    """Convolutions, then a bidirectional recurrent layer, as in sound event detection."""

    class Recurrent(Audio):
        def __init__(self) -> None:
            super().__init__()
            self.mel = LogMel()
            self.features = nn.Sequential(
                norm_conv(1, 16), nn.AvgPool2d((4, 2)), norm_conv(16, 32), nn.AvgPool2d((4, 2))
            )
            self.gru = nn.GRU(128, 64, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.features(self.mel(x).unsqueeze(1)).permute(0, 3, 1, 2).flatten(2)
            return self.gru(y)[0].mean(1)

    return Recurrent()
