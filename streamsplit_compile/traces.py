"""Traces: what a device lives through, one value for each window. Arrays have shape (trace, window), float64.

`synthetic_traces(TraceModel(), ...)` draws from METHOD section 6: LTE-like bandwidth that changes every 30 s,
round trips with jitter, CPU load as a Markov chain, uncertainty as an autoregressive process.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime_edge.splitter import UNCERTAINTY_SMOOTHING

Array = npt.NDArray[np.float64]

STEP_S = 0.5
"""One window each half second (METHOD section 1)."""
_SAMPLES_PER_WINDOW = 5
_BANDWIDTH_FACTOR = 0.3
LINK_SMOOTHING = 1 - (1 - _BANDWIDTH_FACTOR) ** _SAMPLES_PER_WINDOW
"""Weight of the last window in the link estimate: factor 0.3, sampled every 100 ms (METHOD section 6)."""


@dataclass(frozen=True)
class Traces:
    """True conditions of every window, each of shape (trace, window)."""

    uncertainty: Array
    """Normalised, in [0, 1]."""
    cpu: Array
    """Load of other work, in [0, 1]."""
    bandwidth_mbps: Array
    rtt_ms: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(traces, windows)."""
        traces, windows = self.cpu.shape
        return traces, windows


@dataclass(frozen=True)
class TraceModel:
    """A family of synthetic traces. The default is LTE-like."""

    bandwidth_mbps: tuple[float, float] = (0.5, 8.0)
    """Levels are lognormal around the geometric middle, clipped to this range."""
    rtt_ms: tuple[float, float] = (50.0, 200.0)
    jitter_ms: float = 15.0
    change_s: float = 30.0
    """Bandwidth and round trip get a new level this often."""
    cpu_levels: tuple[float, ...] = (0.05, 0.3, 0.55, 0.8)
    cpu_stay: float = 0.95
    """Probability that the load keeps its level for another window; else it moves to a neighbouring one."""
    uncertainty_mean: float = 0.35
    uncertainty_memory: float = 0.9
    """Autocorrelation of the logit from one window to the next."""


def synthetic_traces(model: TraceModel, traces: int, windows: int, seed: int) -> Traces:
    """`traces` independent traces of `windows` windows; the same seed gives the same traces."""
    random = np.random.default_rng(seed)
    shape = (traces, windows)
    low, high = model.bandwidth_mbps
    segment = _segments(model, shape, random)
    levels = random.normal(size=(traces, int(segment.max()) + 1))
    spread = np.log(high / low) / 4  # the range is four standard deviations wide
    bandwidth = np.exp(np.log(low * high) / 2 + spread * np.take_along_axis(levels, segment, 1))
    bandwidth *= np.exp(random.normal(0, 0.05, shape))
    rtt = np.take_along_axis(random.uniform(*model.rtt_ms, size=levels.shape), segment, 1)
    jitter = random.uniform(-model.jitter_ms, model.jitter_ms, shape)
    return Traces(
        uncertainty=_uncertainty(model, shape, random),
        cpu=_cpu_load(model, shape, random),
        bandwidth_mbps=np.clip(bandwidth, low, high),
        rtt_ms=np.maximum(rtt + jitter, 1.0),
    )


def observe(traces: Traces) -> dict[str, Array]:
    """What the device knows when it decides: the windows before, with link and uncertainty smoothed.

    Arrays of shape (trace, window) by state variable.
    """
    return {
        "uncertainty": _smoothed(_previous(traces.uncertainty), UNCERTAINTY_SMOOTHING),
        "cpu": _previous(traces.cpu),
        "bandwidth_mbps": _smoothed(_previous(traces.bandwidth_mbps), LINK_SMOOTHING),
        "rtt_ms": _smoothed(_previous(traces.rtt_ms), LINK_SMOOTHING),
    }


def _segments(model: TraceModel, shape: tuple[int, int], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which level holds in each window, (trace, window); traces start somewhere inside a level."""
    phase = random.uniform(0, model.change_s, (shape[0], 1))
    return np.floor((np.arange(shape[1]) * STEP_S + phase) / model.change_s).astype(np.int64)


def _cpu_load(model: TraceModel, shape: tuple[int, int], random: np.random.Generator) -> Array:
    levels = np.asarray(model.cpu_levels)
    state = random.integers(len(levels), size=shape[0])
    moves = random.choice([-1, 1], shape) * (random.random(shape) >= model.cpu_stay)
    load = np.empty(shape)
    for window in range(shape[1]):
        state = np.clip(state + moves[:, window], 0, len(levels) - 1)
        load[:, window] = levels[state]
    return np.clip(load + random.normal(0, 0.02, shape), 0.0, 1.0)


def _uncertainty(model: TraceModel, shape: tuple[int, int], random: np.random.Generator) -> Array:
    memory = model.uncertainty_memory
    innovation = random.normal(0, np.sqrt(1 - memory**2), shape)
    logit = random.normal(size=shape[0])
    values = np.empty(shape)
    for window in range(shape[1]):
        logit = memory * logit + innovation[:, window]
        values[:, window] = logit
    middle = np.log(model.uncertainty_mean / (1 - model.uncertainty_mean))
    return np.asarray(1 / (1 + np.exp(-(middle + values))), np.float64)


def _previous(values: Array) -> Array:
    return np.concatenate([values[:, :1], values[:, :-1]], axis=1)


def _smoothed(values: Array, factor: float) -> Array:
    mean: Array = values.copy()
    for window in range(1, values.shape[1]):
        mean[:, window] = mean[:, window - 1] + factor * (values[:, window] - mean[:, window - 1])
    return mean
