"""What the runs of `tools.bench_adapt` say: gains with intervals, what was sent, and what the bounds ask for.

A run has its `cell` (corruption, severity, order, seed, arm), `right` and `clean` (one 0 or 1 for each clip: as it was
answered, and without corruption after the stream), `shipped` (share of the windows), `payload` bytes and `updates`.
Clips are the unit of chance: two arms are compared clip by clip, and the clips are drawn again for the intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.benchmarks import Section

JUDGED = (3, 5)
"""The severities that the bounds are about, at which every arm is measured."""
OURS, PLAIN, CHANGING = "joint", "unadapted", "changing"
DRAWS = 10_000
Run = dict[str, Any]
Streams = dict[tuple[Any, ...], Run]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """A mean difference in points, with its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def gain(differences: Points, level: float = 0.95, draws: int = DRAWS) -> Gain:
    """The mean of differences (streams, clips) in points; the interval comes from drawing the clips anew."""
    by_clip = differences.mean(0)
    random = np.random.default_rng(0)
    means = np.concatenate(
        [by_clip[random.integers(0, len(by_clip), (part, len(by_clip)))].mean(1) for part in _parts(draws)]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Gain(float(by_clip.mean()), float(low), float(high))


def _parts(draws: int, most: int = 1000) -> Iterable[int]:
    return [most] * (draws // most) + ([draws % most] if draws % most else [])


def by_stream(runs: Iterable[Run], arm: str, keep: Callable[[Run], bool] = lambda _: True) -> Streams:
    """The runs of an arm, by stream."""
    return {stream_of(run): run for run in runs if run["cell"]["arm"] == arm and keep(run)}


def stream_of(run: Run) -> tuple[Any, ...]:
    """What was played: corruption, severity, order and seed."""
    return tuple(run["cell"][name] for name in ("kind", "severity", "order", "seed"))


def differences(mine: Streams, other: Streams, what: str = "right") -> Points:
    """Points (streams, clips) by which an arm is better than another, on the streams that both have."""
    common = [stream for stream in mine if stream in other]
    rows = [np.subtract(mine[stream][what], other[stream][what]) for stream in common]
    return 100.0 * np.array(rows, dtype=np.float64) if rows else np.empty((0, 0))


def late_differences(mine: Streams, other: Streams) -> Points:
    """The same over the last quarter of each shuffled stream, (1, clips of all streams)."""
    found = []
    for stream in (stream for stream in mine if stream in other and stream[2] == "shuffled"):
        points = differences({stream: mine[stream]}, other)[0]
        order = np.random.default_rng(stream[3]).permutation(len(points))
        found.append(points[order[-(len(points) // 4) :]])
    return np.concatenate(found)[None] if found else np.empty((0, 0))


def judged(run: Run) -> bool:
    """Whether a run is at a severity that the bounds are about."""
    return run["cell"]["severity"] in JUDGED


def worst_cells(runs: Sequence[Run], arm: str = OURS) -> list[tuple[tuple[Any, ...], Gain]]:
    """Gains over the unadapted encoder by stream, the worst first; intervals corrected for the number of streams."""
    mine, plain = by_stream(runs, arm), by_stream(runs, PLAIN)
    common = [stream for stream in mine if stream in plain]
    level = 1 - 0.05 / max(1, len(common))
    found = [(stream, gain(differences({stream: mine[stream]}, plain), level)) for stream in common]
    return sorted(found, key=lambda one: one[1].high)


_COMPARED = (
    ("upload_all_gap", "everything", -1, "at most 1", "points that sending every window adds"),
    ("oracle_gap", "oracle", -1, "", "points that training on true labels adds"),
    ("half_points_lost", "half", 1, "at most 1", "points lost by sending half as many windows"),
    ("gain_over_chance", "chance", 1, "", "points over as many windows sent by chance"),
    ("gain_over_blended", "blended", 1, "", "points over joint with blended statistics"),
    ("gain_over_cema", "cema", 1, "", "points over CEMA as published, which is sent more"),
    ("gain_over_tent", "tent", 1, "", "points over TENT on what CEMA is sent"),
    ("gain_over_eata", "eata", 1, "", "points over EATA on what CEMA is sent"),
    ("gain_over_sar", "sar", 1, "", "points over SAR on what CEMA is sent"),
)
"""Name, the other arm, 1 if ours should be the better one, goal and words of each comparison with ours."""


def section(runs: Sequence[Run], planned: int, command: str) -> Section:
    """The figures that have bounds, as far as they are measured."""
    found = Section("adapt", "Adaptation through normalisation layers", command, part="streams")
    found.detail("runs measured, of those planned", f"{len(runs)}, {planned}")
    plain, ours = by_stream(runs, PLAIN, judged), by_stream(runs, OURS, judged)
    if not (points := differences(ours, plain)).size:
        return found
    _add(found, "gain_severity_3_5", points, "at least 3", "points over unadapted, severities 3 and 5")
    shares = [run["shipped"] for run in ours.values()]
    found.add("share_uploaded", float(np.mean(shares)), "at most 0.45", f"of the windows; at most {max(shares):.2f}")
    clean = -differences(ours, plain, "clean")
    _add(found, "clean_points_lost", clean, "at most 1", "points lost without corruption after the stream")
    for name, arm, sign, goal, what in _COMPARED:
        if (points := sign * differences(ours, by_stream(runs, arm, judged))).size:
            _add(found, name, points, goal, what)
            if arm == "chance":
                low = gain(points).low
                found.add(f"{name}_low", low, "at least 0", "lower end of its 95 % interval")
    half = by_stream(runs, "half", judged)
    if (points := late_differences(ours, half)).size:
        late = gain(points)
        told = f"of it in the last quarter of the shuffled streams; 95 % {late.low:.2f} to {late.high:.2f}"
        found.add("half_points_lost_late", late.mean, "at most 1", told)
    teacher, averaged = (by_stream(runs, arm, judged) for arm in ("teacher", "averaged"))
    if (points := differences(averaged, teacher)).size:
        _add(found, "averaging_gain", points, "", "points that mn04 gains by averaging over shifted copies of a window")
    worst = worst_cells(runs)
    (kind, severity, order, seed), of_it = worst[0]
    told = f"points, upper end of the interval, corrected for {len(worst)}: {kind} {severity}, {order}, seed {seed}"
    found.add("worst_cell", of_it.high, "at least -2", told)
    return found


def _add(found: Section, name: str, points: Points, goal: str, what: str) -> None:
    of_them = gain(points)
    told = f"{what}; {len(points)} streams, 95 % {of_them.low:.2f} to {of_them.high:.2f}"
    found.add(name, of_them.mean, goal, told)
