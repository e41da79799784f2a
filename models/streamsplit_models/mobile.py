"""Inverted residual blocks of the MobileNetV3 and EfficientNet encoders, with torchvision's key names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from streamsplit_models.encoder import InnerLayer

NORM_EPS = 1e-3
NORM_MOMENTUM = 0.01


@dataclass(frozen=True)
class BlockSpec:
    """One inverted residual: expand by 1x1, filter each channel, squeeze-and-excite, project by 1x1."""

    channels_in: int
    kernel: int
    """Side of the depthwise filter."""
    expanded: int
    """Channels inside the block; equal to `channels_in` for no expansion."""
    channels_out: int
    squeeze_excite: bool
    activation: type[nn.Module]
    stride: int


def round_channels(channels: float) -> int:
    """Nearest multiple of 8, but never below 8 nor less than 90 % of `channels` (MobileNet's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def conv_norm(
    channels_in: int,
    channels_out: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution that preserves the size except for `stride`, batch norm and an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out, eps=NORM_EPS, momentum=NORM_MOMENTUM),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int, activation: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = activation()
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, mels, frames) -> the same shape."""
        scale: Tensor = self.gate(self.fc2(self.activation(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))
        return x * scale


class InvertedResidual(nn.Module):
    """The block of a `BlockSpec`; `excite(block)` makes its squeeze-and-excitation. Its layers are in `block`."""

    def __init__(self, config: BlockSpec, excite: Callable[[BlockSpec], nn.Module]) -> None:
        super().__init__()
        c = config
        self.shortcut = c.stride == 1 and c.channels_in == c.channels_out
        self.expands = c.expanded != c.channels_in
        layers: list[nn.Module] = []
        if self.expands:
            layers.append(conv_norm(c.channels_in, c.expanded, activation=c.activation))
        layers.append(conv_norm(c.expanded, c.expanded, c.kernel, c.stride, c.expanded, c.activation))
        if c.squeeze_excite:
            layers.append(excite(c))
        layers.append(conv_norm(c.expanded, c.channels_out))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, mels, frames) -> (batch, channels_out, mels / stride, frames / stride)."""
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y

    def inner(self) -> InnerLayer | None:
        """The expanded channels; None without expansion."""
        if not self.expands:
            return None
        last = len(self.block) - 1
        excite = [name for name, layer in self.block.named_modules(prefix="block") if name.endswith((".fc1", ".fc2"))]
        return InnerLayer(
            "",
            self.block[1][0].out_channels,  # type: ignore[index]
            ("block.0.0", "block.0.1", "block.1.0", "block.1.1", *excite[1:]),
            (*excite[:1], f"block.{last}.0"),
            f"block.{last}.1",
            self.shortcut,
        )
