"""A server's own metrics for Prometheus: `GET /metrics` on the health port.

Labels are statuses, loss terms, uses of a buffer, reasons of the release gate and heads that judge releases. All are
bounded sets; a device's name appears only if it has a head of its own.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from runtime_edge.base.histogram import Histogram
from runtime_edge.base.prometheus import counters, gauge, gauges, histograms, info
from runtime_edge.base.traffic.traffic_log import Traffic
from runtime_server.ingest.frame_replay import ReplayOutcome
from runtime_server.releases.head_judge import UNASKED, HeadScores
from runtime_server.releases.release_gate import ReleaseOutcome
from runtime_server.telemetry.step_energy import EnergyUse
from runtime_server.training.buffer import BufferSize
from runtime_server.training.trainer import StepMetrics

if TYPE_CHECKING:
    from prometheus_client import Metric

_PREFIX = "ssc_server_"


@dataclass(frozen=True)
class TrainingStatus:
    """The state of training."""

    steps: int
    saved_steps: int
    """Steps at the last checkpoint; 0 before the first."""
    last: StepMetrics | None
    step_ms: Histogram
    buffers: Mapping[str, BufferSize]
    """By use: "train" and "held_out"."""
    outcomes: Counter[str]
    """Attempts at a release, by outcome."""
    judged: ReleaseOutcome | None
    """The last attempt."""
    replayed: ReplayOutcome | None
    heads: HeadScores = UNASKED
    """The scores of pushed heads, as far as they are known."""
    energy: EnergyUse | None = None
    """Energy of the steps since the start; None if nothing measures it."""


@dataclass(frozen=True)
class ServerMeasurements:
    """A server's state at one moment."""

    encoder: str
    generation: int
    uptime_s: float
    devices: int
    windows: int
    """Distinct windows that were ever counted."""
    frames: Mapping[str, int]
    """Frames since the start, by outcome."""
    connected: bool
    damaged_lines: int = 0
    """Damaged lines in the ledger's journals at the start."""
    latency_ms: Mapping[str, Histogram] = field(default_factory=dict)
    """Histograms by what was measured."""
    training: TrainingStatus | None = None
    received_bytes: int = 0
    """Since the start; see `RECEIVED`."""
    peak_memory_bytes: int = 0
    """Since the start; see `PEAK_MEMORY`."""
    device_traffic: Traffic = field(default_factory=Traffic)
    """Traffic of all present devices in an hour, as they report it."""
    release_is_paced: bool = False
    """Whether the next release waits for a budget."""
    adaptation: Mapping[str, Any] | None = None
    """`AdaptationService.status`; None if devices are not adapted."""


RECEIVED = "payloads of messages, counted by the broker's client"
PEAK_MEMORY = "getrusage: largest resident set of the process"


def peak_memory_bytes() -> int:
    """The largest resident set that this process has had, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def families(measured: ServerMeasurements) -> Iterator[Metric]:
    """Every metric."""
    yield info(_PREFIX + "encoder", "What is served.", {"encoder": measured.encoder})
    yield gauge(_PREFIX + "generation", "Of the weights that devices are told to run.", measured.generation)
    yield gauge(_PREFIX + "uptime_seconds", "Since the start.", measured.uptime_s)
    yield gauge(_PREFIX + "connected", "Whether the broker is reached.", measured.connected)
    yield gauge(_PREFIX + "devices", "Devices whose windows were counted, ever.", measured.devices)
    yield counters(_PREFIX + "windows", "Distinct windows that were counted, ever.", "", {"": measured.windows})
    yield counters(_PREFIX + "frames", "Frames since the start, by outcome.", "outcome", measured.frames)
    text = "Lines of the ledger's journals that were damaged at the start: windows that may be counted twice."
    yield gauge(_PREFIX + "ledger_damaged_lines", text, measured.damaged_lines)
    received = {RECEIVED: measured.received_bytes}
    yield counters(_PREFIX + "received_bytes", "Since the start, by what counts it.", "source", received)
    peak = {PEAK_MEMORY: measured.peak_memory_bytes}
    yield gauges(_PREFIX + "peak_memory_bytes", "Since the start, by what counts it.", "source", peak)
    text = "That pass the interfaces of the devices that are there, as they say of the last hour."
    traffic = {kind: count / 3600 for kind, count in measured.device_traffic._asdict().items()}
    yield gauges(_PREFIX + "device_bytes_per_second", text, "kind", traffic)
    yield gauge(_PREFIX + "release_paced", "Whether the next release waits for a budget.", measured.release_is_paced)
    if measured.adaptation is not None:
        yield from _adaptation(measured.adaptation)
    if measured.latency_ms:
        text = "Time of a batch in the suffix, and of a frame from its arrival to its answer."
        yield histograms(_PREFIX + "latency_seconds", text, "of", measured.latency_ms.items())
    if measured.training is not None:
        yield from _training(measured.training)


def _adaptation(told: Mapping[str, Any]) -> Iterator[Metric]:
    outcomes = {outcome: told[outcome] for outcome in ("sent", "refused", "withdrawn")}
    yield counters(_PREFIX + "adaptations", "Since the start, by what came of them.", "outcome", outcomes)
    yield counters(_PREFIX + "adaptation_bytes", "Of the adaptations sent since the start.", "", {"": told["bytes"]})
    text = "Windows that arrived as audio since the start, by what adaptation did with them."
    yield counters(_PREFIX + "adaptation_windows", text, "use", told["windows"])


def _training(training: TrainingStatus) -> Iterator[Metric]:
    yield counters(_PREFIX + "training_steps", "Optimiser steps, over all runs.", "", {"": training.steps})
    yield gauge(_PREFIX + "checkpoint_steps", "Optimiser steps of the last checkpoint.", training.saved_steps)
    step = [("", training.step_ms)]
    yield histograms(_PREFIX + "training_step_seconds", "Time of one step.", "", step)
    if training.last is not None:
        yield gauges(_PREFIX + "loss", "Of the last step, by term before weighting.", "term", training.last.losses)
        yield gauges(_PREFIX + "embeddings", "How the last batch lay.", "measure", asdict(training.last.geometry))
        yield gauge(_PREFIX + "gradient_norm", "Of the last step, before clipping.", training.last.gradient_norm)
    sizes = training.buffers
    windows = {use: float(size.windows) for use, size in sizes.items()}
    yield gauges(_PREFIX + "buffer_windows", "Windows kept, by use.", "use", windows)
    yield gauges(_PREFIX + "buffer_bytes", "Memory of them.", "use", {use: size.nbytes for use, size in sizes.items()})
    refused = Counter[str]()
    for size in sizes.values():
        refused.update(size.refused)
    yield counters(_PREFIX + "buffer_refused", "Windows that were not kept, by reason.", "reason", refused)
    yield counters(_PREFIX + "releases", "Attempts at a release, by what came of them.", "outcome", training.outcomes)
    if training.energy is not None:
        yield from _energy(training.energy)
    if training.replayed is not None:
        read = {name: float(getattr(training.replayed, name)) for name in ("read", "put_back", "taken", "missing")}
        yield gauges(_PREFIX + "replayed_windows", "Read again from the stream at the start.", "what", read)
    if training.judged is not None:
        for which, quality in (("released", training.judged.before), ("candidate", training.judged.after)):
            if quality is not None:
                told = {name: value for name, value in asdict(quality).items() if isinstance(value, float)}
                yield gauges(f"{_PREFIX}{which}_quality", "At the last attempt at a release.", "measure", told)
    yield from _heads(training.heads)


def _heads(heads: HeadScores) -> Iterator[Metric]:
    text = "Of the recordings of a pushed head, when a release last depended on them"
    told = [
        ("head_clips", "all there are", {score.head: score.clips for score in heads.judged}),
        (
            "head_clips_released",
            "right with the best generation",
            {score.head: score.before for score in heads.judged},
        ),
        (
            "head_clips_candidate",
            "right with the candidate",
            {score.head: score.after for score in heads.judged},
        ),
    ]
    for name, what, counts in told:
        yield gauges(_PREFIX + name, f"{text}: {what}.", "head", counts)
    yield gauge(_PREFIX + "heads_unjudged", "Pushed heads whose clips are not kept here.", len(heads.without_clips))


def _energy(use: EnergyUse) -> Iterator[Metric]:
    text = "Of training steps since the start, idle power included, by what counts it."
    yield counters(_PREFIX + "training_joules", text, "source", {use.source: use.joules})
    if use.joules_a_step is not None:
        text = "Mean of the training steps since the start, idle power included, by what counts it."
        yield gauges(_PREFIX + "step_joules", text, "source", {use.source: use.joules_a_step})
    if use.above_idle_a_step is not None:
        text = "Mean of the training steps since the start, above the machine's idle power, by what counts it."
        yield gauges(_PREFIX + "step_above_idle_joules", text, "source", {use.source: use.above_idle_a_step})
