"""Writes docs/energy.md from the runs of a study: what contrastive objectives reached, in how many steps and joules.

A run, as `tools.bench_objectives` writes it, has its arm and `points`: after each pass, the accuracies of a linear
probe and of the nearest neighbours, and the steps, seconds and joules until then. Joules are those above idle if the
idle power is given, so that a run is not charged for waiting for another one on the same machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tools.benchmarks import DOCS, Section

LARGE, THIN = 128, 16
OURS, OTHER = "neighbours", "simclr"
WITHIN = 0.01
"""How far below an accuracy still counts as having reached it."""
MOST_LOST, MOST_ENERGY = 1.0, 0.6
Run = dict[str, Any]
_COLOURS = {
    OURS: "#0b7189",
    "virtual-negatives": "#457b9d",
    OTHER: "#e0a458",
    "moco": "#6a994e",
    "simsiam": "#bc4749",
    "barlow-twins": "#6d597a",
}


def best(run: Run) -> float:
    """The probe's best accuracy after any pass."""
    return max(float(point["probe"]) for point in run["points"][1:])


def joules(point: dict[str, Any]) -> float:
    """Joules used until a point."""
    above_idle = point["above_idle_joules"]
    return float(point["joules"] if above_idle is None else above_idle)


def joules_until(run: Run, accuracy: float) -> float | None:
    """Joules until the first pass at which the probe reached an accuracy; None if none did."""
    return next((joules(point) for point in run["points"][1:] if point["probe"] >= accuracy), None)


def at(run: Run, taken: Callable[[dict[str, Any]], float], most: float) -> float:
    """The last accuracy before a run had used more than `most` steps or joules; the accuracy at the start if none."""
    return float([point for point in run["points"] if taken(point) <= most * (1 + 1e-9)][-1]["probe"])


def select(runs: Sequence[Run], **wanted: object) -> list[Run]:
    """The runs with these field values."""
    return [run for run in runs if all(run[name] == value for name, value in wanted.items())]


@dataclass(frozen=True)
class ThinBatches:
    """Our objective at batch 16 against SimCLR at 128, with all windows, seed by seed."""

    lost: list[float]
    """How many points our best accuracy is below SimCLR's."""
    energy: list[float | None]
    """Our joules until the probe is within a point of SimCLR's best, over SimCLR's until its best; None: never."""

    @property
    def mean_energy(self) -> float | None:
        """The mean over the seeds; None if a seed never reached it."""
        known = [share for share in self.energy if share is not None]
        return statistics.mean(known) if len(known) == len(self.energy) else None


def thin_batches(runs: Sequence[Run]) -> ThinBatches | None:
    """Compare them for the first run's encoder; None until both have been measured with a common seed."""
    lost, energy = [], []
    for other in select(runs, objective=OTHER, batch=LARGE, share=1.0, encoder=runs[0]["encoder"]):
        same = {name: other[name] for name in ("share", "encoder", "seed")}
        for ours in select(runs, objective=OURS, batch=THIN, **same):
            lost.append(100 * (best(other) - best(ours)))
            reached, own = joules_until(ours, best(other) - WITHIN), joules_until(other, best(other))
            energy.append(None if reached is None or own is None else reached / own)
    return ThinBatches(lost, energy) if lost else None


def section(runs: Sequence[Run], planned: int) -> Section:
    """The figures that have bounds."""
    found = Section("objectives", "What contrastive objectives cost", "python -m tools.bench_objectives", part="study")
    judged = thin_batches(runs)
    if judged is not None:
        told = f"ours at 16 against SimCLR at 128; {_by_seed(judged.lost, '{:+.1f}')}"
        found.add("thin_batch_points_lost", statistics.mean(judged.lost), f"at most {MOST_LOST:g}", told)
        told = f"joules to SimCLR's best less a point, over its own; {_by_seed(judged.energy, '{:.2f}')}"
        if judged.mean_energy is None:
            found.detail(told, "not reached")
        else:
            found.add("thin_batch_energy", judged.mean_energy, f"at most {MOST_ENERGY:g}", told)
    found.detail("runs measured, of those planned", f"{len(runs)}, {planned}")
    return found


def _by_seed(values: Sequence[float | None], form: str) -> str:
    return "by seed " + ", ".join("never" if value is None else form.format(value) for value in values)


def write_page(runs: Sequence[Run], planned: int, page: Path = DOCS / "energy.md") -> None:
    """Write the page and its pictures."""
    lines = [
        "# What contrastive objectives cost",
        "",
        "`python -m tools.bench_objectives --publish` makes this page from the runs in",
        "[energy-runs.jsonl](energy-runs.jsonl). An encoder learns from Speech Commands without labels, starting from",
        "random weights. A linear probe and the five nearest neighbours are then judged on speakers that were not",
        "used for training.",
        "",
        f"**Measured so far: {len(runs)} of the {planned} runs of the study.**",
        "",
        "## What follows",
        "",
        *_verdict(runs),
        "",
        "## How it was measured",
        "",
        *_footing(runs),
        "",
    ]
    for encoder in dict.fromkeys(run["encoder"] for run in runs):
        for share in sorted({run["share"] for run in select(runs, encoder=encoder)}, reverse=True):
            group = select(runs, encoder=encoder, share=share)
            picture = page.with_name(f"energy-{encoder.replace(' ', '-')}-{share:g}.svg")
            title = f"{encoder}, {100 * share:g} % of the windows"
            _draw(group, title, picture)
            lines += [f"## {title}", "", *_table(group), "", f"![Accuracy over joules]({picture.name})", ""]
    page.write_text("\n".join(lines))


def _footing(runs: Sequence[Run]) -> list[str]:
    """Lines on what counted the joules, on which machine, and how precise an accuracy is."""
    accuracy, asked = statistics.median(map(best, runs)), min(run["asked_of"] for run in runs)
    chance = 196 * math.sqrt(accuracy * (1 - accuracy) / asked)
    machines = {", ".join(f"{key} {value}" for key, value in run["machine"].items() if key != "date") for run in runs}
    return [
        f"- Joules: {'; '.join(sorted({run['points'][-1]['source'] for run in runs}))}. Only training steps count,",
        "  not sending, decoding or probing; above idle if the idle power is known.",
        "- CPU seconds of the same step vary by some 40 % with other load: compare only figures measured together.",
        "- Between two recordings a device is silent for eight windows, so that no two count as the same sound.",
        "- Accuracies are means over seeds, with the minimum and maximum in brackets. They are measured on at least",
        f"  {asked} recordings; the choice of recordings alone makes them uncertain by {chance:.1f} points (95 %).",
        *(f"- Measured on: {one}." for one in sorted(machines)),
    ]


def _table(group: Sequence[Run]) -> list[str]:
    """A table with a row for each objective and batch size; equal steps and joules are the fewest of any run in it."""
    steps = min(run["points"][-1]["steps"] for run in group)
    fewest = min(joules(run["points"][-1]) for run in group)
    rows = [
        f"| objective | batch | seeds | J a step | probe after {steps} steps | probe after {fewest:.0f} J "
        "| best probe | best kNN | peak memory |",
        "|---|--:|--:|--:|---|---|---|---|--:|",
    ]
    for objective, batch in sorted({(run["objective"], run["batch"]) for run in group}, key=lambda arm: arm[::-1]):
        own = select(group, objective=objective, batch=batch)
        cells = [
            objective,
            str(batch),
            str(len(own)),
            f"{statistics.mean(map(_joules_a_step, own)):.2f}",
            _spread(own, lambda run: at(run, lambda point: float(point["steps"]), steps)),
            _spread(own, lambda run: at(run, joules, fewest)),
            _spread(own, best),
            _spread(own, lambda run: max(point["knn"] for point in run["points"][1:])),
            f"{max(run['peak_memory']['bytes'] for run in own) / 1e6:.0f} MB",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return [*rows, "", f"Before any step: {_spread(group, lambda run: float(run['points'][0]['probe']))}."]


def _joules_a_step(run: Run) -> float:
    return joules(run["points"][-1]) / float(run["points"][-1]["steps"])


def _spread(runs: Sequence[Run], figure: Callable[[Run], float]) -> str:
    values = [100 * figure(run) for run in runs]
    if len(values) == 1:
        return f"{values[0]:.1f} %"
    return f"{statistics.mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})"


def _verdict(runs: Sequence[Run]) -> list[str]:
    said, judged = [], thin_batches(runs)
    if judged is not None:
        lost, energy = statistics.mean(judged.lost), judged.mean_energy
        said.append(
            f"- Ours in batches of {THIN} against SimCLR in batches of {LARGE}, all windows: {lost:+.1f} points lost "
            f"({_by_seed(judged.lost, '{:+.1f}')}); the bound of {MOST_LOST:g} is {_met(lost, MOST_LOST)}."
        )
        reached = "a seed never gets there" if energy is None else f"{energy:.2f} of its joules"
        by_seed, met = _by_seed(judged.energy, "{:.2f}"), _met(math.inf if energy is None else energy, MOST_ENERGY)
        said.append(
            f"- Until a point below SimCLR's best: {reached} ({by_seed}); the bound of {MOST_ENERGY:g} is {met}."
        )
    for encoder, share, batch in dict.fromkeys((run["encoder"], run["share"], run["batch"]) for run in runs):
        said += _ordering(select(runs, encoder=encoder, share=share, batch=batch))
    return said or ["- Nothing yet: no two arms that are to be compared have been measured from one seed."]


def _met(value: float, bound: float) -> str:
    return "met" if value <= bound else "**missed**"


def _ordering(group: Sequence[Run]) -> list[str]:
    """Order the objectives by joules until the accuracy that all reach; as published, SimCLR should need the least."""
    names = list(dict.fromkeys(run["objective"] for run in group))
    if len(names) < len(_COLOURS):
        return []
    level = min(map(best, group))
    taken = {}
    for name in names:
        until = [found for run in select(group, objective=name) if (found := joules_until(run, level)) is not None]
        taken[name] = statistics.mean(until)
    order = sorted(names, key=lambda name: taken[name])
    told = ", ".join(f"{name} {taken[name]:.0f} J" for name in order)
    holds = "holds" if order[0] == OTHER else "does not hold"
    fewest = min(len(select(group, objective=name)) for name in names)
    where = f"{group[0]['encoder']}, {100 * group[0]['share']:g} % of the windows, batches of {group[0]['batch']}"
    most = max(names, key=lambda name: statistics.mean(map(best, select(group, objective=name))))
    return [
        f"- {where}, {fewest} or more seeds: until {100 * level:.1f} %, which all reach, {told}. "
        f"That SimCLR takes the least {holds} here. {most} reaches the most."
    ]


def _draw(group: Sequence[Run], title: str, out: Path) -> None:
    """Draw the probe's accuracy over joules: solid lines for large batches, dashed lines for small ones."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    named = set()
    for run in sorted(group, key=lambda run: (run["batch"], run["objective"], run["seed"])):
        label = f"{run['objective']}, {run['batch']}"
        axes.plot(
            [joules(point) for point in run["points"][1:]],
            [100 * point["probe"] for point in run["points"][1:]],
            "-" if run["batch"] == LARGE else "--",
            color=_COLOURS[run["objective"]],
            linewidth=1.2,
            label=None if label in named else label,
        )
        named.add(label)
    axes.set(xscale="log", xlabel="joules of the training steps", ylabel="linear probe, %", title=title)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    with mpl.rc_context({"svg.hashsalt": "streamsplit"}):
        figure.savefig(out, metadata={"Date": None})
