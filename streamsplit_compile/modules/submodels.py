"""Derives sub-models: study an encoder once, then make one for each device.

    known, prices = study(encoder, windows), price(loaded, encoder)
    kept = derive(known, *prices.of(target), Limits(ms=15.0))
    small = submodel(encoder, known, kept, windows)

The published method (docs/method.md, section 10) learns modules and a router; here the modules are the groups of
channels that a trained encoder already has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from streamsplit_compile.modules.derivation import Cost, Limits, Option, choose
from streamsplit_compile.modules.ranking import Study
from streamsplit_compile.modules.slicing import recalibrate, slice_encoder


@dataclass(frozen=True)
class Derived:
    """The choice of a sub-model."""

    kept: dict[str, list[int]]
    """The channels that each layer keeps."""
    loss: float
    """Sum of the layers' losses."""
    cost: Cost
    """Of the whole sub-model."""


def derive(known: Study, fixed: Cost, costs: Mapping[str, Sequence[Cost]], limits: Limits) -> Derived:
    """The least loss within the limits, given the cost of each layer by groups. Raises UsageError if nothing fits."""
    sizes = [[count for count, loss in enumerate(one.losses) if math.isfinite(loss)] for one in known.layers]
    options = [
        [Option(one.losses[count], costs[one.layer.name][count]) for count in own]
        for one, own in zip(known.layers, sizes, strict=True)
    ]
    places = choose(options, fixed, limits)
    taken = [own[place] for own, place in zip(options, places, strict=True)]
    counts = [own[place] for own, place in zip(sizes, places, strict=True)]
    parts = [fixed, *(option.cost for option in taken)]
    return Derived(
        {one.layer.name: one.best(count) for one, count in zip(known.layers, counts, strict=True)},
        sum(option.loss for option in taken),
        Cost(
            sum(part.ms for part in parts),
            sum(part.weight_bytes for part in parts),
            max(part.peak_bytes for part in parts),
        ),
    )


def submodel(encoder: nn.Module, known: Study, kept: Mapping[str, Sequence[int]], windows: Tensor) -> nn.Module:
    """The sub-model with these channels, its batch statistics measured on windows (n, samples)."""
    small = slice_encoder(encoder, kept, known.observation)
    recalibrate(small, windows)
    return small
