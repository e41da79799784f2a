"""The report: summary.json, report.html and its pictures."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime_edge.base.files import write_atomic
from runtime_edge.base.text import duration, size
from runtime_server.cli import traffic_lines
from runtime_server.demo.demo_plots import draw_all
from runtime_server.demo.demo_summary import Evidence
from runtime_server.releases.device_reports import DeviceTraffic

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
figure { margin: 1.2rem 0; } img { max-width: 100%; } figcaption { color: #666; font-size: .9rem; }
.lead { color: #555; margin-top: 0; } code { background: #f3f3f3; padding: .1rem .3rem; }
"""


def write_report(out: Path, summary: dict[str, Any], evidence: Evidence) -> None:
    """Write everything into a directory, the page last."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
    pictures = draw_all(out, evidence, summary)
    write_atomic(out / "report.html", _page(summary, pictures).encode())


def _page(summary: dict[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    machine = summary["machine"]
    figures = "".join(
        f'<figure><img src="{html.escape(name)}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for name, caption in pictures
    )
    saved = summary["bytes_saved_share"]
    released = [row for row in summary["releases"] if row["released"]]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>StreamSplit demo</title><style>{_CSS}</style>
<h1>StreamSplit demo</h1>
<p class="lead">{html.escape(summary["encoder"])} on {html.escape(summary["audio"])}: {len(summary["devices"])} device
processes on emulated links, one server, {summary["duration_s"]:.0f} s in all on {machine["cores"]} cores.</p>
<p>{saved:.0%} fewer bytes than 16-bit PCM. {summary["training_steps"]} training steps and
{len(released)} new generation{"s" * (len(released) != 1)}. Device, wire and server together are within
{summary["parity_max_abs_error"]:.1e} of the whole encoder at
every cut of every generation (float32 wire).</p>
<h2>Devices</h2>{_devices(summary)}
<h2>Traffic</h2>{_traffic(summary)}
<h2>Latency by cut</h2>{_latencies(summary)}
<h2>Releases</h2>{_releases(summary)}
<h2>Pictures</h2>{figures}
<h2>Machine</h2><p>{html.escape(", ".join(f"{key} {value}" for key, value in machine.items()))}</p>
<p>The links are emulated in user space (paced uplink, delay both ways); devices and server share the cores, so times
include each other's load. The load that a device's splitter sees is that of its own process, of one processor.
Numbers are also in <code>summary.json</code>.</p>
</html>
"""


def _devices(summary: dict[str, Any]) -> str:
    rows = [
        [
            name,
            device["target"],
            device["windows_captured"],
            device["windows_acked"],
            device["windows_lost"],
            ", ".join(f"{cut} {count}" for cut, count in sorted(device["cuts_used"].items())),
            f"{device['bytes_sent'] / 1e3:.0f} kB",
            f"{device['bytes_pcm16'] / 1e3:.0f} kB",
            f"{device['generation_start']} → {device['generation_end']}",
            device["table_swaps"],
        ]
        for name, device in summary["devices"].items()
    ]
    head = ["device", "target", "windows", "acked", "lost", "cuts", "sent", "as PCM", "generation", "table swaps"]
    return _table(head, rows)


def _traffic(summary: dict[str, Any]) -> str:
    rows = []
    for name, device in summary["devices"].items():
        traffic = DeviceTraffic.of(device)
        rates = (*traffic.hour.traffic, *traffic.month.traffic)
        rows.append([name, *map(size, rates), duration(traffic.month.seconds)])
    head = [column.replace("\n", " ") for column in traffic_lines.COLUMNS]
    return _table([*head, "reckoned from"], rows)


def _latencies(summary: dict[str, Any]) -> str:
    rows = [
        [cut, values["windows"], f"{values['p50']:.1f}", f"{values['p95']:.1f}"]
        for cut, values in summary["latency_ms"].items()
    ]
    return _table(["cut", "windows", "median ms", "p95 ms"], rows)


def _releases(summary: dict[str, Any]) -> str:
    rows = [
        [
            row["generation"] if row["released"] else "-",
            row["steps"],
            row["reason"],
            ", ".join(row["changed_blocks"]) or "-",
            _number((row["before"] or {}).get("loss")),
            _number((row["after"] or {}).get("loss")),
            f"{row['seconds']:.1f} s",
        ]
        for row in summary["releases"]
    ]
    head = ["generation", "steps", "judgement", "recompiled", "held-out loss before", "after", "took"]
    return _table(head, rows) if rows else "<p>none</p>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"
