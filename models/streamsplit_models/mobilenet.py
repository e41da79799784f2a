"""MobileNetV3-Small on the log-mel image, an encoder for small devices (Howard et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from streamsplit_models.encoder import Encoder, GlobalAveragePool, Normalize, input_norm
from streamsplit_models.front_end import FrontEnd, resolve_front_end
from streamsplit_models.initialise import start
from streamsplit_models.log_mel import LogMel
from streamsplit_models.mobile import BlockSpec, InvertedResidual, SqueezeExcite, conv_norm, round_channels

# channels in, kernel, expanded, channels out, squeeze-and-excitation, hard-swish, stride: table 2
SMALL = (
    (16, 3, 16, 16, True, False, 2),
    (16, 3, 72, 24, False, False, 2),
    (24, 3, 88, 24, False, False, 1),
    (24, 5, 96, 40, True, True, 2),
    (40, 5, 240, 40, True, True, 1),
    (40, 5, 240, 40, True, True, 1),
    (40, 5, 120, 48, True, True, 1),
    (48, 5, 144, 48, True, True, 1),
    (48, 5, 288, 96, True, True, 2),
    (96, 5, 576, 96, True, True, 1),
    (96, 5, 576, 96, True, True, 1),
)


def scaled(table: tuple[tuple[int, int, int, int, bool, bool, int], ...], width: float) -> list[BlockSpec]:
    """Blocks of a MobileNetV3 table with all channel counts multiplied by `width` and rounded.

    Raises ValueError unless `width` is in [0.1, 4].
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0.1 <= width <= 4:
        raise ValueError(f"width is {width!r}, must be a number from 0.1 to 4")
    return [
        BlockSpec(
            round_channels(channels_in * width),
            kernel,
            round_channels(expanded * width),
            round_channels(channels_out * width),
            squeeze_excite,
            nn.Hardswish if hard_swish else nn.ReLU,
            stride,
        )
        for channels_in, kernel, expanded, channels_out, squeeze_excite, hard_swish, stride in table
    ]


class MobileNetV3SmallEncoder(Encoder):
    """LogMel, `features.0` to `features.12` as in torchvision, pool, projection, unit norm."""

    def __init__(self, width: float, front_end: str | Mapping[str, Any] | FrontEnd, embedding_dim: int) -> None:
        config = resolve_front_end(front_end)
        super().__init__(config, embedding_dim)
        self.log_mel = LogMel(config)
        self.input_norm = input_norm()
        blocks = scaled(SMALL, width)
        last = blocks[-1].channels_out
        self.features = nn.Sequential(
            conv_norm(1, blocks[0].channels_in, kernel=3, stride=2, activation=nn.Hardswish),
            *(InvertedResidual(block, _excite) for block in blocks),
            conv_norm(last, 6 * last, activation=nn.Hardswish),
        )
        self.pool = GlobalAveragePool()
        self.projection = nn.Linear(6 * last, embedding_dim)
        self.normalize = Normalize()
        features = tuple(f"features.{index}" for index in range(len(self.features)))
        self.stages = ("log_mel", "input_norm", *features, "pool", "projection", "normalize")


def _excite(block: BlockSpec) -> nn.Module:
    return SqueezeExcite(block.expanded, round_channels(block.expanded // 4), nn.ReLU, nn.Hardsigmoid)


def mobilenet_v3_small(
    width: float = 1.0,
    embedding_dim: int = 128,
    front_end: str | Mapping[str, Any] | FrontEnd = "paper",
    seed: int = 0,
    inner: Mapping[str, int] | None = None,
) -> MobileNetV3SmallEncoder:
    """MobileNetV3-Small with the given width (1.0 and 0.75 are usual), seeded and settled, in eval mode.

    `front_end` is a preset's name or a mapping of `FrontEnd` fields; `inner` is for a narrower one
    (`initialise.start`). Raises ValueError, naming the field, for a width, front end or `embedding_dim` that
    cannot work.
    """
    return start(lambda: MobileNetV3SmallEncoder(width, front_end, embedding_dim), seed, inner)
