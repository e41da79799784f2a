"""docs/energy.md: what contrastive objectives reached, for how many steps and joules, out of the files of a study.

A run is what `tools.bench_objectives` leaves: its arm and `points`, after each pass, with the accuracy of a linear
probe and of the nearest neighbours, and with the steps, seconds and joules until then.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tools.benchmarks import DOCS, Section

LARGE, THIN = 128, 16
OURS, OTHER = "virtual-negatives", "simclr"
WITHIN = 0.01
"""Of accuracy: what counts as reached."""
Run = dict[str, Any]
_COLOURS = ("#0b7189", "#e0a458", "#6a994e", "#bc4749", "#6d597a")


def best(run: Run) -> float:
    """The best accuracy of the probe after any pass."""
    return max(float(point["probe"]) for point in run["points"][1:])


def joules_until(run: Run, accuracy: float) -> float | None:
    """Joules to the first pass that reached an accuracy of the probe; None if none did."""
    return next((point["joules"] for point in run["points"][1:] if point["probe"] >= accuracy), None)


def at(run: Run, what: str, most: float, figure: str = "probe") -> float:
    """The last accuracy before a run had taken more than so many steps or joules; that of the start for none."""
    return float([point for point in run["points"] if point[what] <= most * (1 + 1e-9)][-1][figure])


def select(runs: Sequence[Run], **wanted: object) -> list[Run]:
    """Those with these fields."""
    return [run for run in runs if all(run[name] == value for name, value in wanted.items())]


def thin_batches(runs: Sequence[Run]) -> tuple[float, float | None] | None:
    """Points that ours loses at batch 16 against SimCLR at 128, and its joules over SimCLR's; None without both.

    Joules of ours until its probe is within a point of SimCLR's best, over SimCLR's to its own: the mean over seeds,
    None where a seed never got there.
    """
    pairs = []
    for other in select(runs, objective=OTHER, batch=LARGE, share=1.0):
        pairs += [(ours, other) for ours in select(runs, objective=OURS, batch=THIN, share=1.0, seed=other["seed"])]
    pairs = [(ours, other) for ours, other in pairs if ours["encoder"] == other["encoder"] == _main(runs)]
    if not pairs:
        return None
    lost = statistics.mean(best(other) - best(ours) for ours, other in pairs)
    shares = []
    for ours, other in pairs:
        reached, own = joules_until(ours, best(other) - WITHIN), joules_until(other, best(other))
        if reached is None or own is None:
            return 100 * lost, None
        shares.append(reached / own)
    return 100 * lost, statistics.mean(shares)


def section(runs: Sequence[Run]) -> Section:
    """The figures with a bound."""
    found = Section("objectives", "What contrastive objectives cost", "python -m tools.bench_objectives", part="study")
    seeds = len({run["seed"] for run in runs})
    judged = thin_batches(runs)
    if judged is not None:
        lost, energy = judged
        found.add("thin_batch_points_lost", lost, "at most 1", f"ours at 16 against SimCLR at 128; {seeds} seed(s)")
        if energy is None:
            found.detail("joules of ours at 16 over those of SimCLR at 128", "never within a point")
        else:
            found.add("thin_batch_energy", energy, "at most 0.6", "joules to SimCLR's best less a point, over its own")
    found.detail("runs measured", str(len(runs)))
    return found


def write_page(runs: Sequence[Run], planned: int, page: Path = DOCS / "energy.md") -> None:
    """Write the page and its pictures."""
    lines = [
        "# What contrastive objectives cost",
        "",
        "Made by `python -m tools.bench_objectives --publish`. An encoder learns from Speech Commands without labels,",
        "from random weights; a linear probe and the five nearest neighbours are then asked of speakers nobody learnt",
        "from. Accuracy is the mean over seeds, with the least and the greatest in brackets.",
        "",
        f"**{len(runs)} of the {planned} runs of the study have been measured.**" if len(runs) < planned else "",
        "",
        f"Joules are counted by: {'; '.join(sorted({run['points'][-1]['source'] for run in runs}))}.",
        "",
    ]
    for encoder in dict.fromkeys(run["encoder"] for run in runs):
        for share in sorted({run["share"] for run in select(runs, encoder=encoder)}, reverse=True):
            group = select(runs, encoder=encoder, share=share)
            picture = page.with_name(f"energy-{encoder.replace(' ', '-')}-{share:g}.svg")
            _draw(group, f"{encoder}, {share:.0%} of the windows", picture)
            lines += [f"## {encoder}, {share:.0%} of the windows", "", *_table(group), "", f"![]({picture.name})", ""]
    lines += ["## What follows", "", *_verdict(runs), ""]
    page.write_text("\n".join(line for number, line in enumerate(lines) if line or (number and lines[number - 1])))


def _main(runs: Sequence[Run]) -> object:
    """The encoder that the bounds are about: the first."""
    return runs[0]["encoder"]


def _table(group: Sequence[Run]) -> list[str]:
    """An objective and batch a row; equal steps and joules are the fewest that any run of the table took."""
    steps = min(run["points"][-1]["steps"] for run in group)
    joules = min(run["points"][-1]["joules"] for run in group)
    rows = [
        f"| objective | batch | seeds | J a step | above idle | probe after {steps} steps | probe after {joules:.0f} J "
        "| best probe | best kNN | peak memory |",
        "|---|--:|--:|--:|--:|---|---|---|---|--:|",
    ]
    for objective, batch in dict.fromkeys((run["objective"], run["batch"]) for run in group):
        own = select(group, objective=objective, batch=batch)
        cells = [
            objective,
            str(batch),
            str(len(own)),
            *(_mean([run["points"][-1][name] for run in own]) for name in ("joules_a_step", "above_idle_a_step")),
            _spread(own, lambda run: at(run, "steps", steps)),
            _spread(own, lambda run: at(run, "joules", joules)),
            _spread(own, best),
            _spread(own, lambda run: max(point["knn"] for point in run["points"][1:])),
            f"{max(run['peak_memory']['bytes'] for run in own) / 1e6:.0f} MB",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.2f}" if known else "unknown"


def _spread(runs: Sequence[Run], figure: Callable[[Run], float]) -> str:
    values = [100 * figure(run) for run in runs]
    if len(values) == 1:
        return f"{values[0]:.1f} %"
    return f"{statistics.mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})"


def _verdict(runs: Sequence[Run]) -> list[str]:
    said = []
    judged = thin_batches(runs)
    if judged is not None:
        lost, energy = judged
        said.append(f"- Ours at batch 16 against SimCLR at 128: {lost:+.1f} points lost (the bound is 1).")
        if energy is None:
            said.append("- A seed of ours at batch 16 never came within a point of SimCLR at 128.")
        else:
            said.append(f"- It gets within a point of SimCLR's best for {energy:.2f} of its joules (the bound is 0.6).")
    group = select(runs, encoder=_main(runs), share=1.0, batch=LARGE) or list(runs)
    cheapest = min(group, key=lambda run: run["points"][-1]["joules_a_step"])["objective"]
    said.append(f"- Fewest joules a step in batches of {group[0]['batch']}: {cheapest}.")
    said.append("- The published ordering (SimCLR needs the least) is about other data, encoders and machines.")
    return said


def _draw(group: Sequence[Run], title: str, out: Path) -> None:
    """Accuracy of the probe over joules; whole lines for large batches, broken ones for thin ones."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(dict.fromkeys(run["objective"] for run in group), _COLOURS, strict=False))
    for run in group:
        named = run["seed"] == min(other["seed"] for other in group)
        axes.plot(
            [point["joules"] for point in run["points"][1:]],
            [100 * point["probe"] for point in run["points"][1:]],
            "-" if run["batch"] == LARGE else "--",
            color=colours[run["objective"]],
            linewidth=1.2,
            label=f"{run['objective']}, {run['batch']}" if named else None,
        )
    axes.set(xscale="log", xlabel="joules of the training steps", ylabel="linear probe, %", title=title)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    with mpl.rc_context({"svg.hashsalt": "streamsplit"}):
        figure.savefig(out, metadata={"Date": None})
