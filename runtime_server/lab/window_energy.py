"""Energy of a window on the device, always with its source.

model    the target's cost table for the blocks that ran, its power for encoding, the link's radio for what passed
rapl     what this machine's processor package used meanwhile (everything on it, not only the device), as counted by
         `runtime_server.telemetry.energy`
meter    the log of a USB meter between supply and board: CSV lines `time_s,watts`, seconds since the epoch
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_edge.errors import FormatError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.table import LOCAL
from runtime_edge.formats.results import WindowResult
from runtime_server.lab.session import RunRecording
from runtime_server.labels.csv_fields import filled, finite_number, named_rows
from streamsplit_compile.cost.radios import Radio
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.splitter.pricing import bottleneck_ms, exit_ms, mj_of, whole_macs

MODELLED = ("compute", "radio", "total", "idle")
"""The names of the model's figures; all others were measured."""


@dataclass(frozen=True)
class Energy:
    """Mean energy of one window, mJ."""

    compute_mj: float
    radio_mj: float
    """Sending and receiving, above idle."""
    idle_mj: float
    """Board and radio at rest for the duration of a window; not part of the other two."""

    @property
    def total_mj(self) -> float:
        """The energy above idle."""
        return self.compute_mj + self.radio_mj


@dataclass(frozen=True)
class Transfer:
    """Bytes that were on the link between two moments, s."""

    begins: float
    ends: float
    way: str
    """`up` or `down`."""
    bytes: float


def radio_mj(radio: Radio, transfers: Iterable[Transfer], began: float, ended: float) -> float:
    """Energy above idle between two moments, mJ, including reception.

    A transfer before `began` counts only for the tail it left. If two transfers overlap, the later one is charged for
    its bytes and for the time by which it outlasts the other.
    """
    idle_w, tail_s = radio.idle_w.value, radio.tail_ms.value / 1e3
    powers = {"up": radio.send_w.value - idle_w, "down": radio.receive_w.value - idle_w}
    per_kb = {"up": radio.send_mj_per_kb.value, "down": radio.receive_mj_per_kb.value}
    wake_mj = (radio.wake_w.value - idle_w) * radio.wake_ms.value
    tail_w = radio.tail_w.value - idle_w

    def within(begins: float, ends: float) -> float:
        return max(0.0, min(ends, ended) - max(begins, began))

    found, free_at = 0.0, float("-inf")
    for transfer in sorted(transfers, key=lambda one: one.begins):
        counts = began <= transfer.ends < ended
        rests = transfer.begins - free_at
        if rests > 0:
            found += tail_w * within(free_at, free_at + min(rests, tail_s)) * 1e3
            found += wake_mj * (counts and rests > tail_s)
        found += powers[transfer.way] * within(max(transfer.begins, free_at), transfer.ends) * 1e3
        found += per_kb[transfer.way] * transfer.bytes / 1000 * counts
        free_at = max(free_at, transfer.ends)
    return found + tail_w * within(free_at, free_at + tail_s) * 1e3


def modelled(recording: RunRecording, bundle: Bundle, target: str, radio: Radio) -> Energy:
    """Energy from the figures of target and link (docs/method.md, section 6), for the cuts that ran and all traffic.

    A frame is encoded on one of the cores that the model's power covers. The link's relay tells when data passed, the
    interface how many bytes, including headers.
    """
    figures = load_target(target)
    core_w = (figures.power.active_w.value - figures.power.idle_w.value) / figures.threads
    compute = []
    for heard in recording.results:
        result = heard.result
        encoding = 0.0 if result.cut == LOCAL else recording.encode_ms
        compute.append(blocks_mj(result, result.window in recording.firsts, bundle, target) + encoding * core_w)
    windows, lasts_s = len(recording.results), recording.seconds
    whole_run_mj = radio_mj(radio, _transfers(recording), 0.0, lasts_s)
    idle_w = figures.power.idle_w.value + radio.idle_w.value
    return Energy(float(np.mean(compute)), whole_run_mj / windows, idle_w * lasts_s * 1e3 / windows)


def blocks_mj(result: WindowResult, exit_answered: bool, bundle: Bundle, target: str) -> float:
    """Energy of all that a device computed for one window, given its last result.

    If it finished the window itself after shipping it, it ran the whole encoder; if an exit's answer stands, nothing
    more.
    """
    manifest = bundle.manifest
    cost, macs = manifest.info.targets[target], whole_macs(manifest)
    if result.cut == LOCAL:
        return sum(cost.block_mj)
    shipped_at = manifest.cut_named(result.cut).index
    found = sum(cost.block_mj[: shipped_at if result.finished in ("server", "exit") else None])
    if result.width and (bottleneck := manifest.bottleneck(result.cut)) is not None:
        found += mj_of(bottleneck_ms(bottleneck, cost, macs), cost)
    if exit_answered and (early := manifest.exit(result.cut)) is not None:
        found += mj_of(exit_ms(early, cost, macs), cost)
    return found


def _transfers(recording: RunRecording) -> list[Transfer]:
    """The transfers of a run; each includes its share of the headers, which the relay does not see."""
    inside = [one for one in recording.passages if 0.0 <= one.ends < recording.seconds]
    data = {way: sum(one.bytes for one in inside if one.way == way) for way in ("up", "down")}
    counted = {"up": recording.traffic.up, "down": recording.traffic.down}
    share = {way: max(1.0, counted[way] / data[way]) if data[way] else 1.0 for way in data}
    return [Transfer(one.begins, one.ends, one.way, one.bytes * share[one.way]) for one in recording.passages]


def metered_mj(path: Path, began: float, seconds: float, windows: int) -> float:
    """Energy of one window according to a meter's log, mJ.

    Raises FormatError naming the wrong line, or if the log does not cover the time.
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
