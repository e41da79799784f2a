"""Chooses how many groups each layer keeps: a mixed-integer programme over a table of losses and costs.

Within a layer the best choice of a size is known (`ranking`), so for each layer `l` one of its options `o` is taken:

    minimise   sum of loss[l, o] x[l, o]
    such that  sum over o of x[l, o] = 1 for each l,   x[l, o] in {0, 1}
               fixed ms     + sum of ms[l, o] x[l, o]     <= budget
               fixed bytes  + sum of bytes[l, o] x[l, o]  <= bytes
               bytes + peak                               <= memory,   peak >= sum over o of peak[l, o] x[l, o]

Costs may be any function of the size, such as times measured on a device (docs/method.md, section 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from runtime_edge.errors import UsageError


@dataclass(frozen=True)
class Cost:
    """The cost of one window, of a layer or of everything else."""

    ms: float
    weight_bytes: float
    peak_bytes: float
    """The most bytes of activations alive at once."""


@dataclass(frozen=True)
class Option:
    """A layer with some of its groups."""

    loss: float
    cost: Cost


@dataclass(frozen=True)
class Limits:
    """What a sub-model may cost; None for no limit."""

    ms: float | None = None
    weight_bytes: float | None = None
    memory_bytes: float | None = None
    """Weights and the most activations at once."""


def choose(layers: Sequence[Sequence[Option]], fixed: Cost, limits: Limits) -> list[int]:
    """The number of the option of each layer with the least total loss. Raises UsageError if nothing fits."""
    options = [option for layer in layers for option in layer]
    owner = np.repeat(np.arange(len(layers)), [len(layer) for layer in layers])
    ms, weights, peaks = (
        np.array([getattr(option.cost, name) for option in options]) for name in ("ms", "weight_bytes", "peak_bytes")
    )
    losses = np.array([option.loss for option in options])
    each = (owner == np.arange(len(layers))[:, None]).astype(float)
    # The last variable is the peak, in units of the largest so that all are of one size.
    unit = max(float(peaks.max(initial=0)), fixed.peak_bytes, 1.0)
    rows = [LinearConstraint(np.c_[each, np.zeros(len(layers))], 1, 1)]
    rows.append(LinearConstraint(np.c_[each * peaks / unit, -np.ones(len(layers))], -np.inf, 0))
    for limit, values, of_peak, beside in (
        (limits.ms, ms, 0.0, fixed.ms),
        (limits.weight_bytes, weights, 0.0, fixed.weight_bytes),
        (limits.memory_bytes, weights, unit, fixed.weight_bytes),
    ):
        if limit is not None:
            scale = max(limit, 1e-9)
            rows.append(LinearConstraint(np.r_[values, of_peak] / scale, -np.inf, (limit - beside) / scale))
    found = milp(
        np.r_[losses / max(float(losses.max(initial=0)), 1e-12), 0.0],
        integrality=np.r_[np.ones(len(options)), 0],
        bounds=Bounds(np.r_[np.zeros(len(options)), fixed.peak_bytes / unit], np.r_[np.ones(len(options)), np.inf]),
        constraints=rows,
    )
    if found.x is None:
        raise UsageError(_nothing_fits(layers, fixed, limits))
    taken = [int(place) for place in np.flatnonzero(found.x[:-1] > 0.5)]
    starts = np.cumsum([0, *(len(layer) for layer in layers)])
    return [place - int(starts[layer]) for layer, place in enumerate(taken)]


def _nothing_fits(layers: Sequence[Sequence[Option]], fixed: Cost, limits: Limits) -> str:
    """An error that names what the smallest sub-model costs."""
    least_ms = fixed.ms + sum(min(option.cost.ms for option in layer) for layer in layers)
    least = fixed.weight_bytes + sum(min(option.cost.weight_bytes for option in layer) for layer in layers)
    peak = max([fixed.peak_bytes, *(min(option.cost.peak_bytes for option in layer) for layer in layers)])
    said = []
    if limits.ms is not None and limits.ms < least_ms:
        said.append(f"--budget-ms {limits.ms:g}: at least {least_ms:.3g} ms")
    if limits.weight_bytes is not None and limits.weight_bytes < least:
        said.append(f"--bytes {limits.weight_bytes:g}: at least {least:.0f}")
    if limits.memory_bytes is not None and limits.memory_bytes < least + peak:
        said.append(f"--memory-mb {limits.memory_bytes / 1e6:g}: at least {(least + peak) / 1e6:.3g}")
    return f"no sub-model fits: {'; '.join(said) or 'the limits together are too tight; raise one of them'}"
