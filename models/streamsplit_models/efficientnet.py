"""EfficientNet-B0 on the log-mel image, COLA's encoder (Tan and Le 2019; Saeed et al. 2021).

COLA max-pools B0's 1280 channels over the image and projects them linearly to 512; its pre-training then
adds layer norm and tanh under a bilinear similarity. Here the embedding is the linear projection scaled to
unit norm, which is COLA's own form for its dot-product similarity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from streamsplit_models.encoder import Encoder, GlobalMaxPool, Normalize, input_norm
from streamsplit_models.front_end import FrontEnd, resolve_front_end
from streamsplit_models.initialise import start
from streamsplit_models.log_mel import LogMel
from streamsplit_models.mobile import BlockSpec, InvertedResidual, SqueezeExcite, conv_norm

# expansion, kernel, stride of the first block, channels out, blocks: table 1 of the paper
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


class EfficientNetB0Encoder(Encoder):
    """LogMel, `features.0` to `features.8` as in torchvision, max pool, projection, unit norm."""

    def __init__(self, front_end: str | Mapping[str, Any] | FrontEnd, embedding_dim: int) -> None:
        config = resolve_front_end(front_end)
        super().__init__(config, embedding_dim)
        self.log_mel = LogMel(config)
        self.input_norm = input_norm()
        self.features = nn.Sequential(conv_norm(1, STEM_CHANNELS, 3, 2, activation=nn.SiLU))
        names = ["features.0"]
        channels = STEM_CHANNELS
        for expansion, kernel, first_stride, width, count in STAGES:
            stage = nn.Sequential()
            for index in range(count):
                stride = first_stride if index == 0 else 1
                block = BlockSpec(channels, kernel, channels * expansion, width, True, nn.SiLU, stride)
                stage.append(InvertedResidual(block, _excite))
                names.append(f"features.{len(self.features)}.{index}")
                channels = width
            self.features.append(stage)
        names.append(f"features.{len(self.features)}")
        self.features.append(conv_norm(channels, HEAD_CHANNELS, activation=nn.SiLU))
        self.pool = GlobalMaxPool()
        self.projection = nn.Linear(HEAD_CHANNELS, embedding_dim)
        self.normalize = Normalize()
        self.stages = ("log_mel", "input_norm", *names, "pool", "projection", "normalize")


def _excite(block: BlockSpec) -> nn.Module:
    # Unlike in MobileNetV3, the squeeze width is a quarter of the channels that enter the block.
    return SqueezeExcite(block.expanded, max(1, block.channels_in // 4), nn.SiLU, nn.Sigmoid)


def efficientnet_b0(
    embedding_dim: int = 512,
    front_end: str | Mapping[str, Any] | FrontEnd = "cola",
    seed: int = 0,
    inner: Mapping[str, int] | None = None,
) -> EfficientNetB0Encoder:
    """EfficientNet-B0 with COLA's front end, seeded and settled, in eval mode.

    `front_end` is a preset's name or a mapping of `FrontEnd` fields; `inner` is for a narrower one
    (`initialise.start`). Raises ValueError, naming the field, for a front end or `embedding_dim` that cannot work.
    """
    return start(lambda: EfficientNetB0Encoder(front_end, embedding_dim), seed, inner)
