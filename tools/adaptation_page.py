"""Writes docs/adaptation-streams.md from the runs of `tools.bench_adapt`, with its pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tools.adaptation_figures import CHANGING, OURS, PLAIN, Run, by_stream, differences, gain, stream_of
from tools.benchmarks import DOCS
from tools.corruptions import CHANGES

_ARMS = ("chance", "half", "everything", "blended", "floor", "cema", "tent", "eata", "sar", "oracle")
_COLOURS = {PLAIN: "#8d99ae", OURS: "#0b7189"}
_LATEST = 60
PROCESSES = DOCS / "adaptation-processes.json"
UPDATE_BYTES = 20_000
"""About what an adaptation takes (docs/adaptation.md)."""


def write_page(runs: Sequence[Run], planned: int, page: Path = DOCS / "adaptation-streams.md") -> None:
    """Write the page and its pictures."""
    picture = page.with_name("adaptation-gains.svg")
    kinds = [kind for kind in dict.fromkeys(run["cell"]["kind"] for run in runs) if kind != CHANGING]
    _draw(runs, kinds, picture)
    over_time = page.with_name("adaptation-over-time.svg")
    told = _draw_changes([run for run in runs if run["cell"]["kind"] == CHANGING], over_time)
    lines = [
        "# Adaptation on corrupted streams",
        "",
        "`python -m tools.bench_adapt --publish` makes this page from the runs in",
        "[adaptation-runs.jsonl](adaptation-runs.jsonl). Clips that trained nothing are played once through noise, a",
        "room, a lost band or clipping; each window is answered as the device knew to answer it then.",
        "",
        f"**Measured so far: {len(runs)} of the {planned} runs.** Bounds and intervals:",
        "[benchmarks.md](benchmarks.md#adaptation-through-normalisation-layers).",
        "",
        "## By corruption",
        "",
        *_table(runs, kinds),
        "",
        "Gains are in points of clips labelled correctly, over the encoder that is not adapted, with the 95 % interval",
        "over clips. Up: payload of the windows that were sent (Opus at 24 kbit/s), for each window that was heard.",
        "Teacher: by how many points it is better itself; with less than 5, little can be learnt from it alone.",
        f"Down: adaptations of {UPDATE_BYTES // 1000} kB, for each window that was heard.",
        "",
        f"![Accuracy by severity]({picture.name})",
        "",
        "## As the corruption changes",
        "",
        *(told or ["Not measured yet."]),
        "",
        "## Other methods and shares",
        "",
        *_compared(runs),
        "",
        *_by_processes(page.with_name(PROCESSES.name)),
    ]
    page.write_text("\n".join(lines))


def _by_processes(file: Path) -> list[str]:
    """What a real server and device made of some of the streams (`tools.bench_adapt_processes`)."""
    if not file.exists():
        return []
    rows = [
        "| stream | arm | processes | library | clips alike | sent | by the library | adaptations | lost |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in json.loads(file.read_text()):
        cell, adaptation, mapped = one["cell"], one["adaptation"] or {}, "" if one["own_head"] else ", mapped"
        rows.append(
            f"| {cell['kind']} {cell['severity']}, {cell['order']}, seed {cell['seed']} | {cell['arm']}{mapped} "
            f"| {100 * one['processes']:.1f} % | {100 * one['library']:.1f} % | {100 * one['same']:.1f} % "
            f"| {100 * one['sent']:.0f} % | {100 * one['library_sent']:.0f} % | {adaptation.get('sent', 0)} "
            f"| {one['lost']} of {one['windows']} |"
        )
    return [
        "## By real processes",
        "",
        "The same streams, by `ssc server run --adapt joint` and `ssc edge run --cascade 0.44`, at eight times real",
        "time (`python -m tools.bench_adapt_processes`). There every eighth window judges and trains nothing, an",
        "adaptation has to pass the judge, and it arrives while the stream goes on. *Mapped*: the teacher had no",
        "head of its own, as the library's has, but was mapped to the device's embeddings ([why that gains",
        "less](measurements.md#adaptation)).",
        "",
        *rows,
        "",
    ]


def _table(runs: Sequence[Run], kinds: Sequence[str]) -> list[str]:
    rows = [
        "| corruption | severity | streams | unadapted | `joint` gains | teacher | clean after | sent | up | down |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for kind in kinds:
        for severity in sorted({run["cell"]["severity"] for run in runs if run["cell"]["kind"] == kind}):
            own = [run for run in runs if (run["cell"]["kind"], run["cell"]["severity"]) == (kind, severity)]
            mine, plain = by_stream(own, OURS), by_stream(own, PLAIN)
            points = differences(mine, plain)
            if not points.size:
                continue
            sent = list(mine.values())
            windows = float(np.mean([run["windows"] for run in sent]))
            up = float(np.mean([run["payload"] for run in sent])) / windows
            down = UPDATE_BYTES * float(np.mean([run["updates"] for run in sent])) / windows
            clean = float(differences(mine, plain, "clean").mean())
            teacher = differences(by_stream(own, "teacher"), plain)
            better = f"{teacher.mean():+.1f}" if teacher.size else ""
            right = 100 * float(np.mean([run["right"] for run in plain.values()]))
            rows.append(
                f"| {kind} | {severity} | {len(points)} | {right:.1f} % | {gain(points)} | {better} | {clean:+.1f} "
                f"| {100 * float(np.mean([run['shipped'] for run in sent])):.0f} % | {up:.0f} B | {down:.0f} B |"
            )
    return rows


def _compared(runs: Sequence[Run]) -> list[str]:
    ours, plain = by_stream(runs, OURS), by_stream(runs, PLAIN)
    rows = ["| arm | streams | gain over unadapted | `joint` on the same streams | sent |", "|---|--:|---|---|--:|"]
    for arm in _ARMS:
        mine = {stream: run for stream, run in by_stream(runs, arm).items() if stream in ours and stream in plain}
        if mine:
            same = {stream: ours[stream] for stream in mine}
            sent = 100 * float(np.mean([run["shipped"] for run in mine.values()]))
            over = [gain(differences(one, plain)) for one in (mine, same)]
            rows.append(f"| {arm} | {len(mine)} | {over[0]} | {over[1]} | {sent:.0f} % |")
    return rows if len(rows) > 2 else ["None is measured yet."]


def _draw_changes(runs: Sequence[Run], out: Path) -> list[str]:
    """Share of the latest clips labelled correctly along streams that change; returns lines about the picture."""
    if not runs:
        return []
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    for arm, colour in _COLOURS.items():
        found = []
        for (_, _, _, seed), run in by_stream(runs, arm).items():
            order = np.random.default_rng(seed).permutation(len(run["right"]))
            found.append(np.convolve(np.asarray(run["right"])[order], np.full(_LATEST, 100 / _LATEST), "valid"))
        axes.plot(np.arange(len(found[0])) + _LATEST, np.mean(found, axis=0), color=colour, label=arm)
    clips = len(runs[0]["right"])
    for part, kind in enumerate(CHANGES):
        axes.axvline(part * clips / len(CHANGES), color="#cccccc", linewidth=0.8, zorder=0)
        axes.text((part + 0.5) * clips / len(CHANGES), 1.0, kind or "clean", ha="center", va="bottom",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set(xlabel="clips heard", ylabel=f"of the last {_LATEST} clips, %", xlim=(0, clips))
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    with mpl.rc_context({"svg.hashsalt": "streamsplit"}):
        figure.savefig(out, metadata={"Date": None})
    severity, seeds = runs[0]["cell"]["severity"], len(by_stream(runs, OURS))
    return [
        f"Share of the last {_LATEST} clips that were labelled correctly, severity {severity}, mean of {seeds} seeds:",
        "",
        f"![Accuracy over time]({out.name})",
    ]


def _draw(runs: Sequence[Run], kinds: Sequence[str], out: Path) -> None:
    """Share of clips labelled correctly by severity, a panel for each corruption."""
    figure = Figure(figsize=(2.4 * max(len(kinds), 1), 3.0), layout="constrained")
    both = by_stream(runs, PLAIN).keys() & by_stream(runs, OURS).keys()
    panels = np.atleast_1d(figure.subplots(1, max(len(kinds), 1), sharey=True))
    for panel, kind in zip(panels, kinds, strict=False):
        for arm, colour in _COLOURS.items():
            found: dict[int, list[float]] = {}
            for (at, severity, *_), run in by_stream(runs, arm, lambda run: stream_of(run) in both).items():
                if at == kind:
                    found.setdefault(severity, []).append(100 * float(np.mean(run["right"])))
            severities = sorted(found)
            panel.plot(severities, [np.mean(found[one]) for one in severities], "o-", color=colour, label=arm, ms=4)
        panel.set(title=kind, xlabel="severity", xticks=range(1, 6))
    panels[0].set(ylabel="clips labelled correctly, %")
    panels[-1].legend(frameon=False, fontsize="small")
    with mpl.rc_context({"svg.hashsalt": "streamsplit"}):
        figure.savefig(out, metadata={"Date": None})
