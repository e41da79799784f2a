"""The fate of every window: the numbers behind `ssc edge status` and the run's report.

Each counter has one owner: only the worker writes `Accounting`, only the event loop `LoopCounts`. `merged` puts them
together for reports.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from runtime_edge.base.histogram import Histogram

DropReason = Literal["spool_full", "spool_refused", "spool_damaged"]
"""Why a window never arrives: it was the least informative one in a full spool; or the spool's disk refused it, and it
could not be sent either; or its spool's file was damaged."""

Stage = Literal["wait", "prefix", "exit", "encode", "spool", "publish", "reply"]
"""Stages of a window: waiting for the device, running the prefix, running the exit after it, making the frame, writing
it to the spool, the broker's acknowledgement, the server's answer."""

_MAX_CUTS = 64


@dataclass
class Accounting:
    """What the worker counts: the fate of every window's frame.

    `lost` is what remains after everything else has been accounted for.
    """

    captured: int = 0
    acked: int = 0
    kept_local: int = 0
    """Windows that are not shipped, because of the action `local` or because they are kept."""
    kept: int = 0
    """Of `kept_local`, the windows that the action would ship but the table's thresholds keep."""
    dropped: dict[DropReason, int] = field(default_factory=lambda: defaultdict(int))
    undecided: int = 0
    """Windows that are on their way but not on the disk: soon acknowledged or dropped."""
    inherited: int = 0
    """Frames of earlier runs that are still in the spool."""
    inherited_dropped: int = 0
    pcm16_bytes: int = 0
    table_swaps: int = 0
    generation_start: int = 0
    generation_end: int = 0
    explorations: int = 0
    errors: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stage_ms: dict[Stage, Histogram] = field(default_factory=lambda: defaultdict(Histogram))

    def lost(self, spooled: int) -> int:
        """Windows of this run that are not acknowledged, kept local, dropped for a reason, on their way or spooled.

        `spooled` frames lie in the spool, including those of earlier runs. Always 0 unless the device has a bug.
        """
        own = spooled - self.inherited
        known = self.acked + self.kept_local + sum(self.dropped.values()) + self.undecided + own
        return max(0, self.captured - known)

    def report(self, spooled: int) -> dict[str, Any]:
        """The numbers for JSON; `spooled` as in `lost`."""
        return {
            "windows_captured": self.captured,
            "windows_acked": self.acked,
            "windows_local": self.kept_local,
            "windows_kept": self.kept,
            "share_shipped": round(1 - self.kept_local / max(self.captured, 1), 4),
            "windows_spooled": spooled,
            "windows_inherited": self.inherited,
            "windows_dropped": sum(self.dropped.values()),
            "windows_undecided": self.undecided,
            "windows_lost": self.lost(spooled),
            "dropped": dict(self.dropped),
            "inherited_dropped": self.inherited_dropped,
            "probes": self.explorations,
            "bytes_pcm16": self.pcm16_bytes,
            "table_swaps": self.table_swaps,
            "generation_start": self.generation_start,
            "generation_end": self.generation_end,
            "errors": dict(self.errors),
        }


@dataclass
class LoopCounts:
    """What the event loop counts: results, answers, what was sent, and refused updates."""

    finished: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes_sent: int = 0
    replayed: int = 0
    refused: int = 0
    refused_in_a_row: int = 0
    """Frames refused since the server last completed one."""
    errors: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    latency_ms: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=4096)))
    """The latest latencies by cut, so that memory stays bounded over months."""
    cut_ms: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    """All latencies by cut."""
    cuts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Windows by the chosen cut."""
    revised: int = 0
    """Windows for which the server's answer differed from the exit's earlier one."""
    stage_ms: dict[Stage, Histogram] = field(default_factory=lambda: defaultdict(Histogram))

    def finish(self, cut: str, where: str, latency_ms: float) -> None:
        """Count a window that has its embedding."""
        self.finished[where] += 1
        self.latency_ms[cut].append(latency_ms)
        self.cut_ms[cut].observe(latency_ms)
        if len(self.cut_ms) > _MAX_CUTS:  # bundles come and go
            oldest = next(iter(self.cut_ms))
            del self.cut_ms[oldest], self.latency_ms[oldest]
            self.cuts.pop(oldest, None)

    def answered(self, completed: bool) -> None:
        """Count the answer to one frame: whether the server completed or refused it."""
        self.refused += not completed
        self.refused_in_a_row = 0 if completed else self.refused_in_a_row + 1

    def report(self) -> dict[str, Any]:
        """The numbers for JSON; latencies as median and 95th percentile by cut, ms."""
        return {
            "windows_replayed": self.replayed,
            "windows_refused": self.refused,
            "refused_in_a_row": self.refused_in_a_row,
            "cuts": dict(self.cuts),
            "finished": dict(self.finished),
            "revised": self.revised,
            "bytes_sent": self.bytes_sent,
            "errors": dict(self.errors),
            "latency_ms": {
                cut: {
                    "p50": round(_quantile(values, 0.5), 3),
                    "p95": round(_quantile(values, 0.95), 3),
                    "windows": len(values),
                }
                for cut, values in self.latency_ms.items()
            },
        }


def _quantile(values: Sequence[float], share: float) -> float:
    """The same as numpy's, which loads a megabyte of masked arrays for it and meanwhile blocks the loop for 0.1 s."""
    return float(np.interp(share * (len(values) - 1), range(len(values)), sorted(values)))


def merged(worker: dict[str, Any], loop: dict[str, Any]) -> dict[str, Any]:
    """The two sides' counts in one report."""
    errors = Counter(worker["errors"]) + Counter(loop["errors"])
    return {**worker, **loop, "errors": dict(errors), "torch_imported": "torch" in sys.modules}
