"""EfficientAT's MobileNetV3 family, trained on AudioSet (Schmid et al. 2023).

    encoder = mn(width_mult=0.4)
    encoder.load_state_dict(torch.load("mn04_as_mAP_432.pt", weights_only=True))

The front end is EfficientAT's own and part of the graph. The embedding is the mean-pooled vector before the
classifier (384 wide at width 0.4), scaled to unit norm; the classifier of a published checkpoint is dropped. With
`hidden` its first layer is kept, so that its second layer is a linear map of the embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamsplit_models.encoder import Encoder, GlobalAveragePool, Normalize
from streamsplit_models.front_end import PRESETS, FrontEnd, samples
from streamsplit_models.initialise import SETTLING_SOUNDS, start, synthetic_sounds
from streamsplit_models.log_mel import LogMel
from streamsplit_models.mobile import BlockSpec, InvertedResidual, conv_norm, round_channels
from streamsplit_models.mobilenet import scaled

NATIVE_RATE = 32_000

# channels in, kernel, expanded, channels out, squeeze-and-excitation, hard-swish, stride: MobileNetV3-Large
LARGE = (
    (16, 3, 16, 16, False, False, 1),
    (16, 3, 64, 24, False, False, 2),
    (24, 3, 72, 24, False, False, 1),
    (24, 5, 72, 40, True, False, 2),
    (40, 5, 120, 40, True, False, 1),
    (40, 5, 120, 40, True, False, 1),
    (40, 3, 240, 80, False, True, 2),
    (80, 3, 200, 80, False, True, 1),
    (80, 3, 184, 80, False, True, 1),
    (80, 3, 184, 80, False, True, 1),
    (80, 3, 480, 112, True, True, 1),
    (112, 3, 672, 112, True, True, 1),
    (112, 5, 672, 160, True, True, 2),
    (160, 5, 960, 160, True, True, 1),
    (160, 5, 960, 160, True, True, 1),
)


_PUBLISHED_HIDDEN = "classifier.2."
_MAX_HIDDEN = 8191
_FAINT = 0.001


class ChannelExcite(nn.Module):
    """Squeeze-and-excitation with linear layers and a sigmoid gate."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(squeezed, channels)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, mels, frames) -> the same shape."""
        scale: Tensor = self.gate(self.fc2(self.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * scale.unsqueeze(2).unsqueeze(3)


class ConcurrentExcite(nn.Module):
    """A list of one: the published networks can excite other axes too, and their key names reflect this."""

    def __init__(self, block: BlockSpec) -> None:
        super().__init__()
        squeezed = round_channels(block.expanded // 4)
        self.conc_se_layers = nn.ModuleList([ChannelExcite(block.expanded, squeezed)])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, mels, frames) -> the same shape."""
        excited: Tensor = self.conc_se_layers[0](x)
        return excited


class Lift(nn.Module):
    """(batch, features) -> (batch, features + 1): each vector divided by `reach`, then completed to unit norm.

    So any linear map of a vector is one of its lifted form too. A vector longer than `reach` keeps only its direction.
    """

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, features: Tensor) -> Tensor:
        """Lift each row."""
        part = features / self.reach
        square = part.square().sum(dim=1, keepdim=True)
        rest = (1 - square.clamp(max=1.0)).clamp(min=1e-12).sqrt()
        return torch.cat([part / square.clamp(min=1.0).sqrt(), rest], dim=1)


class MNEncoder(Encoder):
    """LogMel, `features.0` to `features.16` with the published key names, pool, optional hidden layer, unit norm."""

    def __init__(self, width_mult: float, front_end: FrontEnd, hidden: int = 0, reach: float = 1.0) -> None:
        blocks = scaled(LARGE, width_mult)
        last = blocks[-1].channels_out
        super().__init__(front_end, embedding_dim=hidden + 1 if hidden else 6 * last)
        self.log_mel = LogMel(front_end)
        self.features = nn.Sequential(
            conv_norm(1, blocks[0].channels_in, kernel=3, stride=2, activation=nn.Hardswish),
            *(InvertedResidual(block, ConcurrentExcite) for block in blocks),
            conv_norm(last, 6 * last, activation=nn.Hardswish),
        )
        self.pool = GlobalAveragePool()
        features = tuple(f"features.{index}" for index in range(len(self.features)))
        self.stages = ("log_mel", *features, "pool")
        if hidden:
            self.hidden = nn.Sequential(nn.Linear(6 * last, hidden), nn.Hardswish())
            self.stages += ("hidden",)
        self.normalize = Lift(reach) if hidden else Normalize()
        self.stages += ("normalize",)

    def before_lift(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) -> (batch, features): the vector before it is scaled or lifted to unit norm."""
        x = waveform
        for stage in self.stages[:-1]:
            x = self.get_submodule(stage)(x)
        return x

    def longest_hidden(self) -> float:
        """Length of the longest vector from `before_lift`, over seeded synthetic sounds, loud and faint."""
        sounds = synthetic_sounds(
            SETTLING_SOUNDS, self.sample_rate, self.window_samples, torch.Generator().manual_seed(0)
        )
        with torch.inference_mode():
            return max(float(self.before_lift(sounds * level).norm(dim=1).max()) for level in (1.0, _FAINT))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but of a published checkpoint's classifier only the hidden layer is used, if there is one."""
        own = {key: value for key, value in state_dict.items() if not key.startswith("classifier.")}
        if "hidden" in self.stages:
            published = {key: value for key, value in state_dict.items() if key.startswith(_PUBLISHED_HIDDEN)}
            own |= {key.replace(_PUBLISHED_HIDDEN, "hidden.0."): value for key, value in published.items()}
        return super().load_state_dict(own, strict=strict, assign=assign)


def mn(
    width_mult: float = 0.4,
    input_rate: int = 16_000,
    window_seconds: float = 1.0,
    hop_seconds: float = 0.5,
    seed: int = 0,
    hidden: int = 0,
    reach: float = 16.0,
    inner: Mapping[str, int] | None = None,
) -> MNEncoder:
    """EfficientAT's `mn04` (`width_mult` 0.4) and its siblings, untrained until weights are loaded.

    `input_rate` is the waveform's: a divisor of 32 000 Hz, the rate at which the published weights were trained; a
    lower rate is raised to it in the graph. `hidden` is the width of the classifier's first layer if the embedding is
    to be taken after it (512 in published checkpoints, 0 for none), and `reach` a length that its vectors stay below.
    `inner` is for a narrower one (`initialise.start`). Raises ValueError, naming the field, for values that
    cannot work.
    """
    if isinstance(hidden, bool) or not isinstance(hidden, int) or not 0 <= hidden <= _MAX_HIDDEN:
        raise ValueError(f"hidden is {hidden!r}, must be a whole number from 0 to {_MAX_HIDDEN}")
    if isinstance(reach, bool) or not isinstance(reach, int | float) or not 1e-3 <= reach <= 1e6:
        raise ValueError(f"reach is {reach!r}, must be a number from 0.001 to 1000000")
    if isinstance(input_rate, bool) or not isinstance(input_rate, int) or input_rate <= 0:
        raise ValueError(f"input_rate is {input_rate!r}, must be a positive whole number of Hz")
    if NATIVE_RATE % input_rate:
        raise ValueError(f"input_rate is {input_rate}, must divide {NATIVE_RATE} Hz (16000 or 32000 is usual)")
    config = dataclasses.replace(
        PRESETS["efficientat"],
        sample_rate=input_rate,
        window_samples=samples("window_seconds", window_seconds, input_rate),
        hop_samples=samples("hop_seconds", hop_seconds, input_rate),
        upsample=NATIVE_RATE // input_rate,
    )
    return start(lambda: MNEncoder(width_mult, config, hidden, float(reach)), seed, inner)
