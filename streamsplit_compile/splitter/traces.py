"""Traces: the conditions of a device, one value for each window. Arrays have shape (trace, window), float64.

`synthetic_traces(FAMILIES["lte"], ...)` draws from the model in docs/method.md, section 6: LTE-like bandwidth that
changes every 30 s, round trips with jitter, CPU load as a Markov chain, uncertainty as an autoregressive process. The
other families are Wi-Fi with dropouts, office-hours load, link outages, and a wide range from a slow gateway to Wi-Fi.
Recorded traces come from `streamsplit_compile.splitter.trace_csv`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime_edge.policy.splitter import BANDWIDTH_SMOOTHING, SAMPLE_S, UNCERTAINTY_SMOOTHING

Array = npt.NDArray[np.float64]

STEP_S = 0.5
"""Seconds between windows (docs/method.md, section 1)."""
LINK_SMOOTHING = 1 - (1 - BANDWIDTH_SMOOTHING) ** (STEP_S / SAMPLE_S)
"""Weight of the last window in the link estimate: factor 0.3, sampled every 100 ms (docs/method.md, section 6)."""
OUTAGE_MBPS = 0.05
"""The bandwidth estimate in an outage, when nothing of a frame arrives until the device gives it up."""
HELD_OUT = 1_000_003
"""Added to a seed to get traces that nothing is trained on."""


@dataclass(frozen=True)
class Traces:
    """The true conditions of every window, each of shape (trace, window)."""

    uncertainty: Array
    """Normalised, in [0, 1]."""
    cpu: Array
    """Load from other work, in [0, 1]."""
    bandwidth_mbps: Array
    rtt_ms: Array
    temperature_c: Array | None = None
    battery: Array | None = None
    """State of charge, in [0, 1]."""

    @property
    def shape(self) -> tuple[int, int]:
        """(traces, windows)."""
        traces, windows = self.cpu.shape
        return traces, windows


@dataclass(frozen=True)
class TraceModel:
    """A family of synthetic traces. The default is LTE-like."""

    bandwidth_mbps: tuple[float, float] = (0.5, 8.0)
    """Range that levels are clipped to; they are lognormal around its geometric mean."""
    rtt_ms: tuple[float, float] = (50.0, 200.0)
    jitter_ms: float = 15.0
    change_s: float = 30.0
    """How often bandwidth and round trip get a new level."""
    dropout_every_s: float | None = None
    """Mean time from the end of one dropout to the next; None for a link without dropouts."""
    dropout_s: tuple[float, float] = (1.0, 5.0)
    dropout_mbps: float = 0.1
    """Bandwidth that is left in a dropout; 0 is an outage."""
    cpu_levels: tuple[float, ...] = (0.05, 0.3, 0.55, 0.8)
    cpu_stay: float = 0.95
    """Probability that the load keeps its level for another window; otherwise it moves to a neighbouring level."""
    office_hours: bool = False
    """Idle at night, busy from 8:00 to 18:00; each trace starts at a random hour, and a window counts as a minute."""
    uncertainty_mean: float = 0.35
    uncertainty_memory: float = 0.9
    """Autocorrelation of the logit from one window to the next."""


FAMILIES = {
    "lte": TraceModel(),
    "wifi": TraceModel(
        bandwidth_mbps=(2.0, 50.0),
        rtt_ms=(5.0, 40.0),
        jitter_ms=5.0,
        dropout_every_s=40.0,
        dropout_s=(2.0, 10.0),
    ),
    "office": TraceModel(office_hours=True, cpu_levels=(0.02, 0.2, 0.4, 0.6, 0.8, 0.95)),
    "outages": TraceModel(dropout_every_s=60.0, dropout_s=(5.0, 40.0), dropout_mbps=0.0),
    "wide": TraceModel(bandwidth_mbps=(0.1, 16.0), rtt_ms=(10.0, 200.0)),
}
"""Trace families by name; a default table is trained on all of them."""
LORA = TraceModel(bandwidth_mbps=(0.05, 0.05), rtt_ms=(100.0, 200.0))
"""A LoRa gateway at 50 kbit/s; tables are trained on it only on request."""


def family_traces(families: Sequence[str], traces: int, windows: int, seed: int) -> Traces:
    """Draw `traces` traces of each named family."""
    return join([synthetic_traces(FAMILIES[name], traces, windows, seed + i) for i, name in enumerate(families)])


def join(parts: Sequence[Traces]) -> Traces:
    """Concatenate the traces of several sets with the same number of windows."""
    columns: dict[str, Array | None] = {}
    for field in dataclasses.fields(Traces):
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if any(value is None for value in values) else np.concatenate(values)
    return Traces(**columns)  # type: ignore[arg-type]


def synthetic_traces(model: TraceModel, traces: int, windows: int, seed: int) -> Traces:
    """Draw `traces` independent traces of `windows` windows; the same seed gives the same traces."""
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
    uncertainty, cpu = _uncertainty(model, shape, random), _cpu_load(model, shape, random)
    bandwidth = np.clip(bandwidth, low, high)
    if model.dropout_every_s is not None:
        bandwidth[_dropouts(model, shape, random)] = model.dropout_mbps
    return Traces(uncertainty=uncertainty, cpu=cpu, bandwidth_mbps=bandwidth, rtt_ms=np.maximum(rtt + jitter, 1.0))


def observe(traces: Traces) -> dict[str, Array]:
    """The device's knowledge when it decides: values of earlier windows, with link and uncertainty smoothed.

    Returns arrays of shape (trace, window) by state variable. As in the device's estimator, it is the link's time per
    bit that is averaged; a dropout counts as OUTAGE_MBPS.
    """
    seen = {
        "uncertainty": smoothed(previous(traces.uncertainty), UNCERTAINTY_SMOOTHING),
        "cpu": previous(traces.cpu),
        "bandwidth_mbps": 1 / smoothed(1 / np.maximum(previous(traces.bandwidth_mbps), OUTAGE_MBPS), LINK_SMOOTHING),
        "rtt_ms": smoothed(previous(traces.rtt_ms), LINK_SMOOTHING),
    }
    for name in ("temperature_c", "battery"):
        values = getattr(traces, name)
        if values is not None:
            seen[name] = previous(values)
    return seen


def _segments(model: TraceModel, shape: tuple[int, int], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Index of the level in each window, (trace, window); traces start somewhere inside a level."""
    phase = random.uniform(0, model.change_s, (shape[0], 1))
    return np.floor((np.arange(shape[1]) * STEP_S + phase) / model.change_s).astype(np.int64)


def _dropouts(model: TraceModel, shape: tuple[int, int], random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which windows are in a dropout, (trace, window)."""
    assert model.dropout_every_s is not None
    gone = np.zeros(shape, bool)
    for row in gone:
        at_s = random.exponential(model.dropout_every_s)
        while at_s < shape[1] * STEP_S:
            until_s = at_s + random.uniform(*model.dropout_s)
            row[int(at_s / STEP_S) : int(until_s / STEP_S) + 1] = True
            at_s = until_s + random.exponential(model.dropout_every_s)
    return gone


def _cpu_load(model: TraceModel, shape: tuple[int, int], random: np.random.Generator) -> Array:
    levels = np.asarray(model.cpu_levels)
    state = random.integers(len(levels), size=shape[0])
    moves = random.choice([-1, 1], shape) * (random.random(shape) >= model.cpu_stay)
    load = np.empty(shape)
    for window in range(shape[1]):
        state = np.clip(state + moves[:, window], 0, len(levels) - 1)
        load[:, window] = levels[state]
    if model.office_hours:
        hour = (random.uniform(0, 24, (shape[0], 1)) + np.arange(shape[1]) / 60) % 24
        load *= np.where((hour >= 8) & (hour < 18), 1.0, 0.1)
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


def previous(values: Array) -> Array:
    """Values shifted by one window: each window gets the value of the one before, (trace, window)."""
    return np.concatenate([values[:, :1], values[:, :-1]], axis=1)


def smoothed(values: Array, factor: float) -> Array:
    """Exponential moving average along the windows."""
    mean: Array = values.copy()
    for window in range(1, values.shape[1]):
        mean[:, window] = mean[:, window - 1] + factor * (values[:, window] - mean[:, window - 1])
    return mean
