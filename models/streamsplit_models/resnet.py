"""The paper's encoder: ResNet-18 on the log-mel image (docs/method.md, section 2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from streamsplit_models.encoder import Encoder, GlobalAveragePool, InnerLayer, Normalize, input_norm
from streamsplit_models.front_end import FrontEnd, resolve_front_end
from streamsplit_models.initialise import start
from streamsplit_models.log_mel import LogMel

WIDTHS = (64, 128, 256, 512)
BLOCKS_PER_LAYER = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is projected when the shape changes (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, mels, frames) -> (batch, channels, mels / stride, frames / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.downsample(x)
        out: Tensor = self.relu(y)
        return out

    def inner(self) -> InnerLayer:
        """The channels between the two convolutions. What enters a block is never negative, so it can be skipped."""
        skippable = isinstance(self.downsample, nn.Identity)
        return InnerLayer("", self.conv1.out_channels, ("conv1", "bn1"), ("conv2",), "bn2", skippable)


class ResNet18Encoder(Encoder):
    """LogMel, stem, `L = 8` blocks `layer1.0` to `layer4.1`, pool, projection, unit norm.

    Blocks carry torchvision's names (`layer1.0.conv1`, ...); the stem is `stem.conv` and `stem.bn`.
    """

    def __init__(self, front_end: str | Mapping[str, Any] | FrontEnd, embedding_dim: int) -> None:
        config = resolve_front_end(front_end)
        super().__init__(config, embedding_dim)
        self.log_mel = LogMel(config)
        self.input_norm = input_norm()
        self.stem = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(1, WIDTHS[0], 7, stride=2, padding=3, bias=False),
                bn=nn.BatchNorm2d(WIDTHS[0]),
                relu=nn.ReLU(),
                maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        blocks: list[str] = []
        channels = WIDTHS[0]
        for number, width in enumerate(WIDTHS, start=1):
            layer = nn.Sequential()
            for index in range(BLOCKS_PER_LAYER):
                stride = 2 if number > 1 and index == 0 else 1
                layer.append(BasicBlock(channels, width, stride))
                channels = width
                blocks.append(f"layer{number}.{index}")
            self.add_module(f"layer{number}", layer)
        self.pool = GlobalAveragePool()
        self.projection = nn.Linear(channels, embedding_dim)
        self.normalize = Normalize()
        self.stages = ("log_mel", "input_norm", "stem", *blocks, "pool", "projection", "normalize")


def resnet18(
    embedding_dim: int = 128,
    front_end: str | Mapping[str, Any] | FrontEnd = "paper",
    seed: int = 0,
    inner: Mapping[str, int] | None = None,
) -> ResNet18Encoder:
    """ResNet-18 with seeded weights and settled statistics (see `streamsplit_models.initialise.start`), in eval mode.

    `front_end` is a preset's name or a mapping of `FrontEnd` fields; `inner` is for a narrower one
    (`initialise.start`). Raises ValueError, naming the field, for a front end or `embedding_dim` that cannot work.
    """
    return start(lambda: ResNet18Encoder(front_end, embedding_dim), seed, inner)
