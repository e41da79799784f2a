"""Draws a splitter table and its evaluation. The same numbers give the same bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import MissingExtra
from runtime_edge.formats.records.table import SplitterTable
from streamsplit_compile.splitter.evaluation import Evaluation

try:
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ModuleNotFoundError as exc:
    raise MissingExtra("matplotlib", "demo") from exc

UNCERTAINTIES = (0.15, 0.4, 0.7)
_CELLS = 240


def draw_map(table: SplitterTable, rtt_ms: float, out: Path) -> None:
    """Draw the chosen cut over bandwidth and CPU load, with one panel for each level of uncertainty."""
    bandwidth, cpu = np.geomspace(0.05, 32.0, _CELLS), np.linspace(0.0, 1.0, _CELLS // 2)
    colours = [mpl.colormaps["viridis"](x) for x in np.linspace(0.05, 0.95, len(table.costs))]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(UNCERTAINTIES), sharey=True)
    used: set[int] = set()
    for axes, uncertainty in zip(panels, UNCERTAINTIES, strict=True):
        state = {"uncertainty": uncertainty, "rtt_ms": rtt_ms, "temperature_c": 45.0, "battery": 1.0}
        chosen = np.array(
            [[table.policy[table.lookup({**state, "bandwidth_mbps": b, "cpu": c})] for b in bandwidth] for c in cpu]
        )
        used |= set(np.unique(chosen).tolist())
        axes.pcolormesh(
            bandwidth, cpu, chosen, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, rasterized=True
        )
        axes.set(xscale="log", xlabel="uplink, Mbit/s", title=f"uncertainty {uncertainty:g}")
    panels[0].set_ylabel("CPU load of other work")
    handles = [Patch(color=colours[action], label=table.actions[action]) for action in sorted(used)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{table.encoder} on {table.target}: chosen cut, round trip {rtt_ms:g} ms")
    _save(figure, out)


def draw_evaluation(found: Evaluation, title: str, out: Path) -> None:
    """Draw the reward and the shipped bytes of the table and of the policies it is compared with."""
    fixed = {f"always {name}": row for name, row in found.fixed.items()}
    rows = {
        "optimum": found.optimum,
        "table": found.table,
        "rule": found.rule,
        **fixed,
        "device only": found.device_only,
    }
    names, values = list(rows), list(rows.values())
    figure = Figure(figsize=(10, 0.4 * len(names) + 1.4), layout="constrained")
    panels: Any = figure.subplots(1, 3, sharey=True)
    colours = ["#6a994e" if name == "optimum" else "#0b7189" if name == "table" else "#bbbbbb" for name in names]
    for axes, field, label in zip(
        panels, ("reward", "latency_ms", "mb_per_hour"), ("mean reward", "latency, ms", "MB/h"), strict=True
    ):
        axes.barh(names[::-1], [getattr(row, field) for row in values[::-1]], color=colours[::-1])
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{title} (regret {found.regret:.4f})")
    _save(figure, out)


def _save(figure: Figure, out: Path) -> None:
    data = io.BytesIO()
    kind = out.suffix.lstrip(".").lower() or "svg"
    with mpl.rc_context({"svg.hashsalt": "streamsplit", "svg.fonttype": "none"}):
        figure.savefig(data, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    write_atomic(out, data.getvalue())
