"""The figures of one run, from the device's results, its interface and its process."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.actions import action_name
from runtime_edge.formats.records.table import LOCAL
from runtime_edge.formats.results import WindowResult
from runtime_edge.formats.strict import Strict
from runtime_server.lab.scenarios import ScenarioStep
from runtime_server.lab.session import RunRecording, TimedResult
from runtime_server.lab.window_energy import Energy, modelled
from streamsplit_compile.cost.radios import Radio

_HOUR_S = 3600.0
_SETTLED_S = 3.0
"""How long after a step a policy's choice counts as its reaction to it."""
_BEFORE_WINDOWS = 4
PARTS = ("device", "network", "server", "wait")
Array = npt.NDArray[np.float32]
Number = Annotated[float, Meta(ge=0)]


class Figures(Strict, frozen=True, kw_only=True):
    """One run of one policy in one scenario."""

    encoder: str
    scenario: str
    policy: str
    repeat: int
    windows: int
    """Windows captured in time that have an embedding by the end."""
    missing: int
    """Windows captured in time that have none."""
    latency_ms: dict[str, Number]
    """From the end of a window to its last embedding outside the device's process: p50, p95, p99. The last one is the
    exit's if the server's did not come in time."""
    first_latency_ms: dict[str, Number] = msgspec.field(default_factory=dict)
    """The same for the first embedding; empty in files from before exits."""
    parts_ms: dict[str, Number]
    """Medians of the parts that the device reports: device, network, server; wait is the rest of the median latency."""
    up_mb_per_hour: Number
    down_mb_per_hour: Number
    updates_mb_per_hour: Number = 0.0
    """Part of both directions, as the device counts it; 0 in older files."""
    energy_mj: dict[str, Number]
    """Energy of a window by the model: compute, radio, their total, which is above idle, and the energy at idle
    (missing in older files); also measured energy, if any was measured."""
    fidelity: float
    """Mean cosine with the whole encoder's float32 embedding."""
    fidelity_worst: float
    fidelity_first: float | None = None
    """The mean for first answers; None in files from before exits."""
    finished: dict[str, int]
    """Counts of last answers, by what finished them."""
    cuts: dict[str, int]
    """Counts by cut and width, named as in `sequence`."""
    changes: int
    """Changes of cut or width from one window to the next."""
    reaction_s: list[Number]
    """For each step after which the policy changes its cut or width."""
    processor_share: Number
    """Share of one processor of this machine, paced."""
    queued_share: Number = 0.0
    """Share of the time in which the device's threads were ready to run but others had the processor, such as the
    scenario's load."""
    memory_mb: Number
    sequence: list[str]
    """The cut, with its width, of each window in order of capture (`action_name`)."""
    first_answers: list[str] = msgspec.field(default_factory=list)
    """What computed each window's first embedding: `local`, `<cut>+exit`, or the name of what was shipped to the
    server. Empty in files from before exits, which only have `sequence`."""
    final_answers: list[str] = msgspec.field(default_factory=list)
    """What computed each window's last embedding."""
    frame_bytes: list[int]
    times_s: list[float]
    """Capture time of each window, from the beginning of the scenario."""


def figures(
    recording: RunRecording,
    *,
    encoder: str,
    scenario: str,
    policy: str,
    repeat: int,
    bundle: Bundle,
    target: str,
    steps: Sequence[ScenarioStep],
    radio: Radio,
    reference: Array,
    measured_mj: dict[str, float],
) -> Figures:
    """Compute a run's figures; `reference` holds the float32 embedding of each window of the audio, (windows, d)."""
    heard = sorted(recording.results, key=lambda item: item.result.window)
    results = [item.result for item in heard]
    front_end = bundle.manifest.info.front_end
    expected = recording.seconds * front_end.sample_rate / front_end.hop_samples
    firsts = [recording.firsts.get(item.result.window, item) for item in heard]
    latency = _latency_ms(heard)
    parts = np.median([(r.device_ms, r.network_ms, r.server_ms) for r in results], axis=0)
    energy = modelled(recording, bundle, target, radio)
    cosine = _cosines(heard, reference)
    per_hour = _HOUR_S / recording.seconds / 1e6
    sequence = [action_name(result.cut, result.width) for result in results]
    return Figures(
        encoder=encoder,
        scenario=scenario,
        policy=policy,
        repeat=repeat,
        windows=len(results),
        missing=max(0, int(expected) - len(results)),
        latency_ms=_percentiles(latency),
        first_latency_ms=_percentiles(_latency_ms(firsts)),
        parts_ms={
            **{name: round(float(ms), 2) for name, ms in zip(PARTS, parts, strict=False)},
            "wait": round(max(0.0, float(np.median(latency)) - float(parts.sum())), 2),
        },
        up_mb_per_hour=round(recording.traffic.up * per_hour, 4),
        down_mb_per_hour=round(recording.traffic.down * per_hour, 4),
        updates_mb_per_hour=round(recording.update_bytes * per_hour, 4),
        energy_mj=_rounded(energy) | {name: round(value, 2) for name, value in measured_mj.items()},
        fidelity=round(float(cosine.mean()), 5),
        fidelity_worst=round(float(cosine.min()), 5),
        fidelity_first=round(float(_cosines(firsts, reference).mean()), 5),
        finished=dict(Counter(result.finished for result in results)),
        cuts=dict(Counter(sequence)),
        changes=sum(before != after for before, after in itertools.pairwise(sequence)),
        reaction_s=[round(value, 3) for value in reactions(recording.began, heard, steps)],
        processor_share=round(recording.processor_s / recording.seconds, 4),
        queued_share=round(recording.queued_s / max(recording.queued_s + recording.processor_s, 1e-9), 4),
        memory_mb=round(recording.memory_mb, 1),
        sequence=sequence,
        first_answers=[answered_by(item.result) for item in firsts],
        final_answers=[answered_by(result) for result in results],
        frame_bytes=[result.frame_bytes for result in results],
        times_s=[round(result.time - recording.began, 3) for result in results],
    )


def reactions(began: float, heard: Sequence[TimedResult], steps: Sequence[ScenarioStep]) -> list[float]:
    """Seconds from each step to the first window at the new cut and width that a policy settles on, if it changes them.

    Only steps whose level lasts long enough to settle count. A window's cut is decided at the end of its capture.
    """
    times = np.array([item.result.time - began for item in heard])
    cuts = np.array([action_name(item.result.cut, item.result.width) for item in heard])
    found = []
    ends_s = [step.at_s for step in steps[2:]] + [float(times[-1])]
    for step, ends in zip(steps[1:], ends_s, strict=False):
        before = cuts[times < step.at_s][-_BEFORE_WINDOWS:]
        after = cuts[(times >= step.at_s + _SETTLED_S) & (times < ends)]
        if not before.size or not after.size:
            continue
        new = Counter(after.tolist()).most_common(1)[0][0]
        if new == Counter(before.tolist()).most_common(1)[0][0]:
            continue
        first = times[(times >= step.at_s) & (cuts == new)]
        found.append(float(first[0] - step.at_s))
    return found


def answered_by(result: WindowResult) -> str:
    """What computed a result's embedding: `local`, `<cut>+exit`, or the cut and width shipped to the server."""
    if result.finished == "exit":
        return action_name(result.cut, 0, "exit")
    return action_name(result.cut, result.width) if result.finished == "server" else LOCAL


def _latency_ms(heard: Sequence[TimedResult]) -> npt.NDArray[np.float64]:
    return np.array([(item.at - item.result.time) * 1e3 for item in heard])


def _rounded(energy: Energy) -> dict[str, float]:
    found = {"compute": energy.compute_mj, "radio": energy.radio_mj, "total": energy.total_mj, "idle": energy.idle_mj}
    return {name: round(value, 3) for name, value in found.items()}


def _percentiles(latency_ms: npt.NDArray[np.float64]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(latency_ms, p)), 2) for p in (50, 95, 99)}


def _cosines(heard: Sequence[TimedResult], reference: Array) -> Array:
    found = np.array([item.result.embedding for item in heard], np.float32)
    wanted = reference[[item.result.window for item in heard]]
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine: Array = (found * wanted).sum(1) / np.maximum(norms, 1e-12)
    return cosine
