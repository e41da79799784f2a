"""Pictures of a bench: where latency comes from, what a byte buys, what the table did over time."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from runtime_server.lab.bench import Bench
from runtime_server.lab.figures import Figures
from runtime_server.lab.scenarios import SCENARIOS

_PARTS = {"device": "#0b7189", "network": "#bbbbbb", "server": "#6a994e", "wait": "#e0a458"}


def draw(bench: Bench, encoder: str, scenario: str, out: Path) -> list[Path]:
    """Three SVG files below `out`; returns them."""
    runs = [run for run in bench.runs if (run.encoder, run.scenario) == (encoder, scenario)]
    name = f"proof-{encoder}-{scenario}"
    files = [out / f"{name}-{what}.svg" for what in ("latency", "bytes", "time")]
    _draw_latency(runs, f"{encoder}, {scenario}, {bench.target}", files[0])
    _draw_bytes(bench, runs, f"{encoder}, {scenario}, {bench.target}", files[1])
    chosen = next((run for run in runs if run.policy == "table"), None)
    if chosen is None or scenario not in SCENARIOS:
        return files[:2]
    _draw_time(bench, chosen, f"{encoder}, {scenario}: the table", files[2])
    return files


def _draw_latency(runs: list[Figures], title: str, out: Path) -> None:
    """Medians of the parts, stacked; a mark at the 95th percentile."""
    names = list(dict.fromkeys(run.policy for run in runs))
    figure = Figure(figsize=(8, 0.35 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(names)
    for part, colour in _PARTS.items():
        widths = [statistics.median(run.parts_ms[part] for run in runs if run.policy == name) for name in names]
        axes.barh(names, widths, left=left, color=colour, label=part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    p95 = [statistics.median(run.latency_ms["p95"] for run in runs if run.policy == name) for name in names]
    axes.plot(p95, names, "k|", markersize=10, label="95th percentile")
    axes.invert_yaxis()
    axes.set(xlabel="from the end of a window to its embedding, ms (median)", title=title)
    axes.legend(frameon=False, fontsize="small")
    _save(figure, out)


def _draw_bytes(bench: Bench, runs: list[Figures], title: str, out: Path) -> None:
    """Accuracy of a probe, or fidelity where none was measured, over bytes an hour."""
    accuracy = bench.encoders[runs[0].encoder].accuracy
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(run.policy for run in runs):
        own = [run for run in runs if run.policy == name]
        scored = accuracy.get(f"{own[0].scenario}/{name}", accuracy.get("pcm16" if name == "flac" else name))
        good = scored.probe if scored else statistics.median(run.fidelity for run in own)
        up = statistics.median(run.up_mb_per_hour for run in own)
        axes.plot(up, good, "o", color="#0b7189" if name == "table" else "#999999")
        axes.annotate(name, (up, good), textcoords="offset points", xytext=(5, 3), fontsize="small")
    axes.set(
        xscale="log", xlabel="MB an hour, up", ylabel="probe accuracy" if accuracy else "fidelity (cosine)", title=title
    )
    axes.grid(alpha=0.3)
    _save(figure, out)


def _draw_time(bench: Bench, run: Figures, title: str, out: Path) -> None:
    """The link above, the cuts that were taken below."""
    steps = SCENARIOS[run.scenario].steps(bench.seconds, bench.seed)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    link, cut = figure.subplots(2, 1, sharex=True)
    times = [step.at_s for step in steps] + [bench.seconds]
    link.step(times, [0.0 if step.outage else step.mbps for step in steps] + [steps[-1].mbps], where="post")
    link.set(ylabel="Mbit/s", title=title)
    order = bench.encoders[run.encoder].cuts
    cut.plot(run.times_s, [order.index(name) if name in order else len(order) for name in run.sequence], ".")
    cut.set(ylabel="cut", xlabel="s", ylim=(-0.5, len(order) - 0.5), yticks=range(len(order)), yticklabels=order)
    _save(figure, out)


def _save(figure: Figure, out: Path) -> None:
    # The same numbers give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "ssc", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
