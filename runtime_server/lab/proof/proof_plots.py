"""Pictures of a bench: where latency comes from, what bytes buy, and what the table did over time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from runtime_edge.errors import MissingExtra
from runtime_edge.formats.records.table import cut_position
from runtime_server.lab.figures import PARTS, Figures
from runtime_server.lab.policy_arms import OURS
from runtime_server.lab.policy_bench import PolicyBench
from runtime_server.lab.proof.proof_report import policies_of, runs_of, scored

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ModuleNotFoundError as exc:
    raise MissingExtra("matplotlib", "bench") from exc

_COLOURS = dict(zip(PARTS, ("#0b7189", "#bbbbbb", "#6a994e", "#e0a458"), strict=True))
_OURS, _OTHERS = "#0b7189", "#999999"
_NEAR_BYTES, _NEAR_GOOD = 0.05, 0.03
"""Points closer than this share a label: in decades of bytes, and as a share of the picture's height."""


def draw(bench: PolicyBench, encoder: str, scenario: str, page: Path) -> list[Path]:
    """Three SVG files beside a page, named after it; returns them."""
    runs = [run for run in bench.runs if (run.encoder, run.scenario) == (encoder, scenario)]
    files = [page.with_name(f"{page.stem}-{encoder}-{scenario}-{what}.svg") for what in ("latency", "bytes", "time")]
    _draw_latency(runs, f"{encoder}, {scenario}, {bench.target}", files[0])
    _draw_bytes(bench, encoder, scenario, f"{encoder}, {scenario}, {bench.target}", files[1])
    chosen = next((run for run in runs if run.policy == OURS), None)
    if chosen is None or scenario not in bench.scenarios:
        return files[:2]
    _draw_time(bench, chosen, f"{encoder}, {scenario}: the table", files[2])
    return files


def _draw_latency(runs: list[Figures], title: str, out: Path) -> None:
    """Medians of the parts as stacked bars, with a mark at the 95th percentile."""
    names = list(dict.fromkeys(run.policy for run in runs))
    figure = Figure(figsize=(8, 0.35 * len(names) + 1.7), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(names)
    for part, colour in _COLOURS.items():
        widths = [statistics.median(run.parts_ms[part] for run in runs if run.policy == name) for name in names]
        axes.barh(names, widths, left=left, color=colour, label=part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    p95 = [statistics.median(run.latency_ms["p95"] for run in runs if run.policy == name) for name in names]
    axes.plot(p95, names, "k|", markersize=10, label="95th percentile")
    axes.invert_yaxis()
    axes.set(xlabel="from the end of a window to its embedding, ms (median)", title=title)
    figure.legend(loc="outside lower center", ncols=len(_COLOURS) + 1, frameon=False, fontsize="small")
    _save(figure, out)


def _draw_bytes(bench: PolicyBench, encoder: str, scenario: str, title: str, out: Path) -> None:
    """A probe's accuracy, or fidelity if none was measured, over bytes an hour."""
    accuracy = bench.encoders[encoder].accuracy
    places: list[tuple[float, float, str]] = []
    for name in policies_of(bench, encoder, scenario):
        runs, of_clips = runs_of(bench, encoder, scenario, name), scored(bench, encoder, scenario, name)
        good = of_clips.probe if of_clips else statistics.median(run.fidelity for run in runs)
        places.append((statistics.median(run.up_mb_per_hour for run in runs), good, name))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for up, good, name in places:
        axes.plot(up, good, "o", color=_OURS if name == OURS else _OTHERS, zorder=3 if name == OURS else 2)
    axes.set(xscale="log", xlabel="MB an hour, up", ylabel="probe accuracy" if accuracy else "fidelity", title=title)
    axes.margins(x=0.1, y=0.1)
    low, high = axes.get_ylim()
    room = high - low  # space for labels: above the best points, below the others
    axes.set_ylim(low - room / 2, high + room)
    best = max(good for _, good, _ in places)
    for up, good, names in _labels(places):
        is_best = best - good <= _NEAR_GOOD * (high - low)
        offset, rotation, align = ((-1, 5), 60, "bottom") if is_best else ((-1, -5), -60, "top")
        axes.annotate(
            ", ".join(names), (up, good), textcoords="offset points", xytext=offset, rotation=rotation, va=align,
            fontsize="small",
        )  # fmt: skip
    axes.grid(alpha=0.3)
    _save(figure, out)


def _labels(places: list[tuple[float, float, str]]) -> list[tuple[float, float, list[str]]]:
    """Labelled points; points at nearly the same place share one label."""
    height = max(good for _, good, _ in places) - min(good for _, good, _ in places)
    found: list[tuple[float, float, list[str]]] = []
    for up, good, name in sorted(places):
        for at_up, at_good, names in found:
            if math.log10(up / at_up) < _NEAR_BYTES and abs(good - at_good) <= _NEAR_GOOD * height:
                names.append(name)
                break
        else:
            found.append((up, good, [name]))
    return found


def _draw_time(bench: PolicyBench, run: Figures, title: str, out: Path) -> None:
    """The link and the load at the top, the cuts taken at the bottom."""
    steps = list(bench.scenarios[run.scenario].steps)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    link, other, cut = figure.subplots(3, 1, sharex=True)
    times = [step.at_s for step in steps] + [bench.seconds]
    steps.append(steps[-1])
    link.step(times, [0.0 if step.outage else step.mbps for step in steps], where="post", color=_OURS)
    link.set(ylabel="Mbit/s", title=title, ylim=(0, None))
    if any(step.cpu for step in steps):
        other.step(times, [step.cpu for step in steps], where="post", color=_OURS)
        other.set(ylabel="load", ylim=(0, 1))
    else:
        other.step(times, [step.rtt_ms for step in steps], where="post", color=_OURS)
        other.set(ylabel="round trip, ms", ylim=(0, None))
    cuts, shipped = bench.encoders[run.encoder].cuts, {*bench.encoders[run.encoder].cuts, *run.sequence}
    order = sorted(shipped, key=lambda name: place_of(name, cuts))
    cut.plot(run.times_s, [order.index(name) for name in run.sequence], ".", color=_OURS)
    cut.set(ylabel="cut", xlabel="s", ylim=(-0.5, len(order) - 0.5), yticks=range(len(order)), yticklabels=order)
    _save(figure, out)


def place_of(name: str, cuts: Sequence[str]) -> tuple[int, int]:
    """The position of something shipped: by cut, with `local` last, then by width, with the full activation first."""
    cut, in_a_width, width = name.rpartition("/")
    return (cut_position(cut, cuts), int(width)) if in_a_width else (cut_position(name, cuts), 0)


def _save(figure: Figure, out: Path) -> None:
    # The same numbers give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "ssc", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
