"""The layers of an encoder that consist of groups of channels, any of which can be left out.

layers_of(encoder)          # an encoder that says what it consists of, such as a ResNet or a MobileNet
groups_of(layer)            # its groups, each a range of channels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from torch import nn

from runtime_edge.errors import UsageError

GROUP = 8
"""Channels of a group, except the last of a layer: what processors multiply at once."""


class Layer(Protocol):
    """The inner channels of one block (`streamsplit_models.encoder.InnerLayer`)."""

    @property
    def name(self) -> str:
        """Name of the block."""

    @property
    def channels(self) -> int:
        """How many there are."""

    @property
    def writers(self) -> tuple[str, ...]:
        """Modules with one row for each channel in all their tensors, first the one that makes them."""

    @property
    def readers(self) -> tuple[str, ...]:
        """Convolutions and linear layers that read them; the last one makes the block's output."""

    @property
    def norm(self) -> str:
        """The batch norm after the last reader."""

    @property
    def skippable(self) -> bool:
        """Whether the block can be left out as a whole."""


class Divisible(Protocol):
    """What an encoder has whose channels can be left out (`streamsplit_models.encoder.Encoder`)."""

    def inner_layers(self) -> tuple[Layer, ...]:
        """Its layers, in order."""

    def keep_channels(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Leave out all channels of the named layers but these."""


def layers_of(encoder: nn.Module, name: str = "encoder") -> tuple[Layer, ...]:
    """The layers of an encoder, called `name` in errors. Raises UsageError if it has none."""
    if not callable(getattr(encoder, "inner_layers", None)) or not (found := cast(Divisible, encoder).inner_layers()):
        raise UsageError(
            f"{name}: no channels that can be left out; ResNet, MobileNet, EfficientNet and mn encoders have them"
        )
    return found


def groups_of(layer: Layer) -> list[range]:
    """The groups of a layer, in order."""
    return [range(start, min(start + GROUP, layer.channels)) for start in range(0, layer.channels, GROUP)]


def channels_in(layer: Layer, groups: Sequence[int]) -> list[int]:
    """The channels of some groups, in order."""
    every = groups_of(layer)
    return [channel for group in sorted(groups) for channel in every[group]]
