"""The report's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime_edge.errors import MissingExtra
from runtime_server.demo.demo_scenario import DemoDevice
from runtime_server.demo.demo_summary import Evidence
from runtime_server.demo.heard import Row

try:
    import matplotlib as mpl

    mpl.use("Agg")

    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullFormatter
except ModuleNotFoundError as exc:
    raise MissingExtra("matplotlib", "demo") from exc

_COLOURS = ("#0b7189", "#e07a1f", "#6a994e", "#8f2d56", "#3d405b", "#b5838d", "#577590", "#f2cc8f")
_STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def draw_all(directory: Path, evidence: Evidence, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Draw every picture into a directory; returns (file name, caption) of each."""
    pictures = []
    with plt.rc_context(_STYLE):
        _draw_heard(directory / "heard.png", evidence)
        pictures.append(("heard.png", "What each device heard, and when; a cross where it is labelled otherwise"))
        _draw_bytes(directory / "bytes.png", summary)
        pictures.append(("bytes.png", "Bytes of each device, beside those of the audio itself"))
        for device in evidence.plan:
            if not device.alone:
                name = f"device-{device.name}.png"
                _draw_device(directory / name, device, evidence)
                pictures.append((name, f"{device.name}: the cut of every window, its link and its processor"))
        _draw_latency(directory / "latency.png", summary)
        pictures.append(
            ("latency.png", "Latency of this machine by cut, and what the device's own part is predicted to take")
        )
        if evidence.server["losses"]:
            _draw_losses(directory / "losses.png", evidence)
            pictures.append(("losses.png", "Training on the server; a dashed line is a release"))
        if len(evidence.generations) > 1:
            _draw_generations(directory / "generations.png", evidence)
            pictures.append(("generations.png", "The generation each window ran on"))
    return pictures


def _seconds(evidence: Evidence, rows: list[Row]) -> list[float]:
    return [row["time"] - evidence.streamed_at for row in rows]


def _draw_device(path: Path, device: DemoDevice, evidence: Evidence) -> None:
    rows = evidence.results[device.name]
    times = _seconds(evidence, rows)
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(9, 5.6), sharex=True, height_ratios=(1.4, 1.2, 0.8), layout="constrained"
    )
    cuts = list(dict.fromkeys([*evidence.cuts, *(row["cut"] for row in rows)]))  # `local` is not a cut of the encoder
    positions = [cuts.index(row["cut"]) for row in rows]
    for explored, marker, label in ((False, "o", "policy"), (True, "D", "exploration")):
        chosen = [(t, p) for t, p, row in zip(times, positions, rows, strict=True) if row["probe"] == explored]
        if chosen:
            colour = _COLOURS[explored]
            top.scatter(*zip(*chosen, strict=True), s=14, marker=marker, color=colour, label=label, zorder=3)
    top.plot(times, positions, color=_COLOURS[0], alpha=0.3, drawstyle="steps-post")
    top.set_yticks(range(len(cuts)), cuts)
    top.set_ylim(-0.5, len(cuts) + 0.2)
    top.set_title(f"{device.name} ({device.target}): cut chosen")
    if device.swapped:
        top.axvline(evidence.swapped_at - evidence.streamed_at, color=_COLOURS[3], ls="--", label="table swapped")
    top.legend(loc="upper right", frameon=False, ncols=3)
    _draw_link(middle, device, times, rows)
    bottom.plot(times, [row["cpu"] for row in rows], color=_COLOURS[2])
    bottom.set_ylim(0, 1.05)
    bottom.set_title("processor load that the device sees")
    bottom.set_xlabel("seconds")
    _save(figure, path)


def _draw_link(axes: Axes, device: DemoDevice, times: list[float], rows: list[Row]) -> None:
    edges, rates, elapsed = [0.0], [], 0.0
    for phase in device.phases:
        elapsed += phase.seconds
        edges.append(elapsed)
        rates.append(phase.uplink_mbps)
    axes.stairs(rates, edges, color=_COLOURS[4], lw=1.5, label="emulated uplink", baseline=None)
    axes.plot(times, [row["bandwidth_mbps"] for row in rows], color=_COLOURS[1], label="the device's estimate")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("bandwidth, Mbit/s")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 2.5)
    axes.legend(loc="upper right", frameon=False, ncols=2)


def _draw_heard(path: Path, evidence: Evidence) -> None:
    plays = [play for own in evidence.heard.values() for play in own]
    labels = sorted({play.label for play in plays}, reverse=True)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * len(labels)), layout="constrained")
    shift = 0.6 / len(evidence.heard)
    for index, (name, own) in enumerate(evidence.heard.items()):
        for wrong in (False, True):
            shown = [play for play in own if (play.right is False) == wrong]
            axes.scatter(
                [play.at - evidence.streamed_at for play in shown],
                [labels.index(play.label) - 0.3 + shift * (index + 0.5) for play in shown],
                s=16, marker="x" if wrong else "o", color=_COLOURS[index], label=None if wrong else name,
            )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel("seconds")
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    axes.set_title("heard")
    _save(figure, path)


def _draw_bytes(path: Path, summary: dict[str, Any]) -> None:
    names = list(summary["devices"])
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.85 * len(names)), layout="constrained")
    for index, label in enumerate(("as 16-bit PCM", "as Opus", "sent", "received")):
        values = [_bytes(summary["devices"][name])[index] / 1e3 for name in names]
        places = [row - 0.3 + 0.2 * index for row in range(len(names))]
        bars = axes.barh(places, values, 0.19, color=_COLOURS[(4, 6, 0, 2)[index]], label=label)
        axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title("kB")
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def _bytes(device: dict[str, Any]) -> tuple[float, float, float, float]:
    wire = device["wire_bytes"]
    return device["bytes_as_pcm16"], device["bytes_as_opus"], wire["up"], wire["down"]


def _draw_latency(path: Path, summary: dict[str, Any]) -> None:
    labels, parts, predicted = [], [], []
    for name, device in summary["devices"].items():
        costs = summary["predicted_device_ms"][device["target"]]
        for cut, values in device["latency_parts_ms"].items():
            labels.append(f"{name} · {cut} ({device['cuts_used'][cut]})")
            parts.append(values)
            predicted.append(costs.get(cut))
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.33 * len(labels)), layout="constrained")
    left = [0.0] * len(labels)
    for index, part in enumerate(("device", "network", "server")):
        widths = [values[part] for values in parts]
        axes.barh(labels, widths, left=left, color=_COLOURS[index], label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.0f} ms", va="center")
    rows = [row for row, value in enumerate(predicted) if value is not None]
    axes.scatter(
        [predicted[row] for row in rows], rows, marker="|", s=120, color="black", zorder=3, label="device, predicted"
    )
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title("median latency, ms (windows in brackets)")
    axes.legend(frameon=False)
    _save(figure, path)


def _draw_losses(path: Path, evidence: Evidence) -> None:
    losses = evidence.server["losses"]
    terms = [name for name in ("task", "spread", "laplacian") if name in losses[0]]
    names = ["total", *(terms if len(terms) > 1 else ())]
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    steps = [row["step"] for row in losses]
    for index, name in enumerate(names):
        axes.plot(steps, [row[name] for row in losses], color=_COLOURS[index], label=name, marker=".", ms=4)
    for row in evidence.server["releases"]:
        if row["released"]:
            axes.axvline(row["steps"], color="grey", ls="--", lw=0.8)
            axes.text(row["steps"], axes.get_ylim()[1], f"{row['generation']} ", ha="right", va="top", color="grey")
    axes.set_xlabel("training step")
    axes.set_title("loss" + (" and its terms, before weighting" if len(names) > 1 else ""))
    axes.legend(frameon=False)
    _save(figure, path)


def _draw_generations(path: Path, evidence: Evidence) -> None:
    figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
    for index, (name, rows) in enumerate(evidence.results.items()):
        axes.plot(_seconds(evidence, rows), [row["generation"] + 0.06 * index for row in rows],
                  color=_COLOURS[index], drawstyle="steps-post", label=name)  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("seconds")
    axes.set_title("generation")
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
