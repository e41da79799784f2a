"""Energy of a window on the device, always with where it comes from.

model    the target's cost table for the blocks that ran, its power for the encoding, its radio for the bytes
rapl     what this machine's processor package used meanwhile (everything on it, not the device alone), as
         `runtime_server.telemetry.energy` counts it
meter    what a USB meter between supply and board logged: CSV lines `time_s,watts`, seconds since the epoch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_edge.errors import FormatError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.table import LOCAL
from runtime_server.lab.scenarios import ScenarioStep
from runtime_server.lab.session import RunRecording
from runtime_server.labels.csv_fields import filled, finite_number, named_rows
from streamsplit_compile.cost.targets import load_target

MODELLED = ("compute", "radio", "total")
"""The names of the model's figures; others are what was measured."""
_BITS_PER_BYTE = 8


@dataclass(frozen=True)
class Energy:
    """Of one window on average, mJ."""

    compute_mj: float
    radio_mj: float

    @property
    def total_mj(self) -> float:
        """Both."""
        return self.compute_mj + self.radio_mj


def modelled(recording: RunRecording, bundle: Bundle, target: str, steps: Sequence[ScenarioStep]) -> Energy:
    """By the target's figures (docs/method.md, section 6), for the cuts that ran and the bytes the interface counted.

    A frame is made on one core of those that the model's power is for. A window that was finished here after all ran
    the whole encoder.
    Receiving is not in the model: the figures of radios that the targets cite are of sending.
    """
    info, figures = bundle.manifest.info, load_target(target)
    block_mj = info.targets[target].block_mj
    core_w = (figures.power.active_w.value - figures.power.idle_w.value) / figures.threads
    names = [cut.name for cut in info.cuts]
    compute = []
    for heard in recording.results:
        result = heard.result
        whole = result.cut == LOCAL or result.finished != "server"
        blocks = len(block_mj) if whole else names.index(result.cut)
        encoding = 0.0 if result.cut == LOCAL else recording.encode_ms
        compute.append(sum(block_mj[:blocks]) + encoding * core_w)
    bytes_each = recording.traffic.up / len(recording.results)
    mbps = np.array([_step_at(steps, heard.result.time - recording.began).mbps for heard in recording.results])
    transfer_ms = bytes_each * _BITS_PER_BYTE / (mbps * 1e3)
    radio = figures.radio.mj_per_kb.value * bytes_each / 1000 + figures.radio.transmit_w.value * transfer_ms
    return Energy(float(np.mean(compute)), float(np.mean(radio)))


def metered_mj(path: Path, began: float, seconds: float, windows: int) -> float:
    """Energy of one window by a meter's log, mJ.

    Raises FormatError naming the line that is wrong, or when the log does not cover the time.
    """
    rows = []
    for number, row in named_rows(path):
        where = f"{path}: line {number}"
        fields = ((name, filled(row, name, where, "time_s,watts")) for name in ("time_s", "watts"))
        rows.append([finite_number(text, f"{where}: {name}") for name, text in fields])
    if not rows:
        raise FormatError(f"{path}: no readings; the first line names the columns: time_s,watts")
    times, watts = np.array(rows).T
    inside = (times >= began) & (times < began + seconds)
    if inside.sum() < 2 or times.min() > began or times.max() < began + seconds:
        raise FormatError(f"{path}: no readings over the {seconds:.0f} s from {began:.0f}")
    return float(watts[inside].mean() * seconds * 1e3 / windows)


def _step_at(steps: Sequence[ScenarioStep], at_s: float) -> ScenarioStep:
    return [step for step in steps if step.at_s <= max(at_s, 0.0)][-1]
