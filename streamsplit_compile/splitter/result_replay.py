"""Replays a device's recorded results with another table, to see what that would have chosen, with what result."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from runtime_edge.base.files import read_bounded
from runtime_edge.errors import FormatError, TableError
from runtime_edge.formats.records.actions import action_name
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.formats.results import Answer
from runtime_edge.formats.strict import decode
from runtime_edge.policy.splitter import UNCERTAINTY_SMOOTHING
from streamsplit_compile.splitter.environment import environment_of, simulate, with_local
from streamsplit_compile.splitter.evaluation import Consequences, consequences
from streamsplit_compile.splitter.policies import play
from streamsplit_compile.splitter.traces import Traces, previous, smoothed

MAX_LOG_BYTES = 1 << 30


class RecordedWindow(msgspec.Struct, frozen=True):
    """The fields needed from a result line (`ssc edge run --results`); others are ignored."""

    window: int
    cut: str
    probe: bool
    uncertainty: float
    cpu: float
    bandwidth_mbps: float
    rtt_ms: float
    latency_ms: float
    width: int = 0
    answer: Answer | None = None
    revises: int = 0

    @property
    def action(self) -> str:
        """The recorded action's name."""
        return action_name(self.cut, self.width, self.answer or "server")


@dataclass(frozen=True)
class ResultLog:
    """A device's recording, in the order of its windows."""

    path: Path
    windows: list[RecordedWindow]
    lines: list[int]
    """Line number of each window in the file, starting at 1."""


@dataclass(frozen=True)
class ResultReplay:
    """A recording compared with a table's choices."""

    windows: int
    changed: float
    """Share of windows for which the table chooses another cut than the device did."""
    taken: dict[str, float]
    """Share of windows by cut, as recorded."""
    chosen: dict[str, float]
    """Share of windows by cut, as chosen by the table."""
    measured_latency_ms: float
    recorded: Consequences
    """Results of the device's own choices, at the table's costs."""
    table: Consequences


def read_results(path: Path) -> ResultLog:
    """Read the first answers from a file of JSON lines. Raises FormatError naming file, line and field."""
    found = []
    for number, line in enumerate(read_bounded(path, MAX_LOG_BYTES, FormatError).splitlines(), 1):
        if line.strip():
            window = decode(line, RecordedWindow, f"{path}:{number}", MAX_LOG_BYTES)
            if not window.revises:
                found.append((window, number))
    if not found:
        raise FormatError(f"{path}: no results in it")
    found.sort(key=lambda window: window[0].window)
    return ResultLog(path, [window for window, _ in found], [number for _, number in found])


def replay(table: SplitterTable, log: ResultLog) -> ResultReplay:
    """Play a table under the conditions that a device recorded.

    Raises TableError when a recorded cut is none of the table's actions (naming file and line), or when the table uses
    a state variable that results do not record.
    """
    environment = with_local(environment_of(table))
    names = [action.name for action in environment.actions]
    results = log.windows
    for result, line in zip(results, log.lines, strict=True):
        if result.action not in names:
            raise TableError(
                f"{log.path}:{line}: cut {result.action!r} is not in the table, which has {', '.join(names)}: "
                "give a table of the bundle that the device ran"
            )

    def column(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.array([[getattr(result, name) for result in results]], np.float64)

    uncertainty = column("uncertainty")
    observed = {
        "uncertainty": smoothed(previous(uncertainty), UNCERTAINTY_SMOOTHING),
        **{name: column(name) for name in ("cpu", "bandwidth_mbps", "rtt_ms")},
    }
    for axis in table.state:
        if axis.name not in observed:
            raise TableError(f"{log.path}: results do not record {axis.name}, which is in the table's state")
    traces = Traces(uncertainty, observed["cpu"], observed["bandwidth_mbps"], observed["rtt_ms"])
    outcome = simulate(environment, traces)
    chosen = play(table, observed)
    actual = np.array([[names.index(result.action) for result in results]])
    return ResultReplay(
        windows=len(results),
        changed=float((chosen != actual).mean()),
        taken=_shares(actual, names),
        chosen=_shares(chosen, names),
        measured_latency_ms=float(column("latency_ms").mean()),
        recorded=consequences(environment, outcome, actual),
        table=consequences(environment, outcome, chosen),
    )


def _shares(actions: np.ndarray[tuple[int, ...], np.dtype[np.int64]], names: list[str]) -> dict[str, float]:
    counts = Counter(actions.ravel().tolist())
    return {name: counts[index] / actions.size for index, name in enumerate(names)}
