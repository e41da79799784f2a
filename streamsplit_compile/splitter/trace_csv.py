"""Recorded traces: CSV files with a line for each time of measurement.

    time_s,bandwidth_mbps,rtt_ms,cpu
    0.0,3.2,61,0.12
    1.0,3.1,64,0.15

`time_s` rises from line to line; values hold until the next line. Optional columns: `uncertainty` and `battery` (in
[0, 1]) and `temperature_c`. A missing `uncertainty` is drawn as in the synthetic traces.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime_edge.audio.files.folder import is_hidden
from runtime_edge.base.files import read_text
from runtime_edge.errors import FormatError, UsageError
from streamsplit_compile.splitter.traces import FAMILIES, STEP_S, Array, TraceModel, Traces, join, synthetic_traces

MAX_CSV_BYTES = 64 << 20
MAX_FILES = 1000
MAX_WINDOWS = 480
"""The longest trace; a longer recording becomes several."""
MIN_WINDOWS = 20
LONGEST_GAP_S = 60.0
HELD_OUT_SHARE = 5
"""One trace in this many is held out for evaluation."""

_BOUNDS = {
    "time_s": (-1e12, 1e12),
    "bandwidth_mbps": (0.0, 1e5),
    "rtt_ms": (0.0, 6e4),
    "cpu": (0.0, 1.0),
    "uncertainty": (0.0, 1.0),
    "temperature_c": (-60.0, 150.0),
    "battery": (0.0, 1.0),
}
_NEEDED = ("time_s", "bandwidth_mbps", "rtt_ms", "cpu")

Columns = dict[str, Array]


def recorded_traces(path: Path, seed: int) -> tuple[Traces, Traces]:
    """Traces to train on and held-out ones (the last fifth of every file), from a CSV file or a directory of them.

    Raises FormatError naming file, line and column, UsageError when there is nothing to read.
    """
    files = sorted(filter(_is_trace, path.iterdir())) if path.is_dir() else [path]
    if not files or len(files) > MAX_FILES:
        raise UsageError(f"--traces {path}: {len(files)} .csv files, expected 1 to {MAX_FILES}")
    recordings = [_resampled(read_csv(file), str(file)) for file in files]
    shortest = min(len(columns["cpu"]) for columns in recordings)
    length = min(MAX_WINDOWS, shortest // HELD_OUT_SHARE)
    if length < MIN_WINDOWS:
        need_s = MIN_WINDOWS * HELD_OUT_SHARE * STEP_S
        raise UsageError(f"--traces {path}: the shortest recording lasts {shortest * STEP_S:g} s, {need_s:g} s needed")
    train, held_out = [], []
    for index, columns in enumerate(recordings):
        traces = _cut(columns, length, seed + index)
        kept = max(1, traces.shape[0] // HELD_OUT_SHARE)
        train.append(_some(traces, slice(None, -kept)))
        held_out.append(_some(traces, slice(-kept, None)))
    return join(train), join(held_out)


def _is_trace(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not is_hidden(path.name)


def read_csv(path: Path) -> Columns:
    """Read and check the columns of one file, (line,) each. Raises FormatError naming file, line and column."""
    lines = csv.reader(io.StringIO(read_text(path, MAX_CSV_BYTES)), strict=True)
    try:
        names = next(lines, [])
        _check_header(names, path)
        rows = [(lines.line_num, _row(line, names, f"{path}:{lines.line_num}")) for line in lines if line]
    except csv.Error as exc:
        raise FormatError(f"{path}:{lines.line_num}: {exc}") from None
    if len(rows) < 2:
        raise FormatError(f"{path}: {len(rows)} lines of values, at least 2 needed")
    columns = dict(zip(names, np.array([values for _, values in rows]).T, strict=True))
    times = columns["time_s"]
    steps = np.diff(times)
    for wrong in np.flatnonzero((steps <= 0) | (steps > LONGEST_GAP_S))[:1]:
        raise FormatError(
            f"{path}:{rows[wrong + 1][0]}: time_s: {times[wrong + 1]:g} follows {times[wrong]:g}; times must rise, "
            f"by at most {LONGEST_GAP_S:g} s (split the file at gaps)"
        )
    return columns


def _check_header(names: Sequence[str], path: Path) -> None:
    for name in names:
        if name not in _BOUNDS:
            raise FormatError(f"{path}:1: column {name!r} is not known; there are {', '.join(_BOUNDS)}")
    if len(set(names)) != len(names):
        raise FormatError(f"{path}:1: a column appears twice")
    for name in _NEEDED:
        if name not in names:
            raise FormatError(f"{path}:1: column {name} is missing")


def _row(line: Sequence[str], names: Sequence[str], where: str) -> list[float]:
    if len(line) != len(names):
        raise FormatError(f"{where}: {len(line)} values for {len(names)} columns")
    values = []
    for name, text in zip(names, line, strict=True):
        low, high = _BOUNDS[name]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise FormatError(f"{where}: {name}: {text[:40]!r} is not a number from {low:g} to {high:g}")
        values.append(value)
    return values


def _resampled(columns: Columns, source: str) -> Columns:
    """One value for each window; each line's values hold until the next line."""
    times = columns["time_s"]
    count = int((times[-1] - times[0]) / STEP_S) + 1
    if count > 10_000_000:
        raise FormatError(f"{source}: time_s: {count} windows, too long")
    line = np.searchsorted(times, times[0] + np.arange(count) * STEP_S, side="right") - 1
    return {name: values[line] for name, values in columns.items() if name != "time_s"}


def _cut(columns: Columns, length: int, seed: int) -> Traces:
    """Cut a recording into as many traces of `length` windows as it holds."""
    traces = len(columns["cpu"]) // length
    parts: dict[str, Array] = {
        name: values[: traces * length].reshape(traces, length) for name, values in columns.items()
    }
    if "uncertainty" not in parts:
        parts["uncertainty"] = synthetic_traces(TraceModel(), traces, length, seed).uncertainty
    return Traces(**parts)


def _some(traces: Traces, which: slice) -> Traces:
    columns = {field.name: getattr(traces, field.name) for field in dataclasses.fields(Traces)}
    return Traces(**{name: values[which] for name, values in columns.items() if values is not None})


def known_families(text: str) -> tuple[str, ...] | None:
    """Parse `lte,wifi` as names of families; None if it is something else, for example a path."""
    names = tuple(name.strip() for name in text.split(","))
    return names if all(name in FAMILIES for name in names) else None
