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
from runtime_server.web.judgement import attempt_in_words
from streamsplit_compile.bundle.bundle_page import OPUS_KBITS

_REFUSED_TOLD = 3
"""How many refused attempts at a release the page shows: the last ones."""
_CSS = """
:root { color-scheme: light dark; --text: #222; --quiet: #5a5a5a; --line: #ddd; --ground: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --quiet: #a8a8a8; --line: #3a3f45; --ground: #16191d; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--ground); }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
@media (max-width: 50rem) { th, td { white-space: nowrap; } }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
figure { margin: 1.2rem 0; } img { max-width: 100%; background: #fff; border-radius: 4px; }
figcaption { color: var(--quiet); font-size: .9rem; }
.lead, .note { color: var(--quiet); } .lead { margin-top: 0; }
code { overflow-wrap: anywhere; }
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
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>StreamSplit demo</title><style>{_CSS}</style>
<h1>StreamSplit demo</h1>
<p class="lead">{html.escape(summary["encoder"])} on {html.escape(summary["audio"])}: {len(summary["devices"])} device
processes on emulated links, one server, {summary["duration_s"]:.0f} s in all on {machine["cores"]} cores.</p>
<h2>What was heard</h2>{_heard(summary["heard"])}
<h2>Bytes</h2>{_bytes(summary)}
<h2>Devices</h2>{_devices(summary)}
<h2>Whose milliseconds</h2>{_latencies(summary)}
<h2>Training, and a head that survives it</h2>{_releases(summary)}
<h2>Pictures</h2>{figures}
<h2>Traffic an hour and a month</h2>{_traffic(summary)}
<h2>Machine</h2><p>{html.escape(", ".join(f"{key} {value}" for key, value in machine.items()))}</p>
<p class="note">Numbers are also in <code>summary.json</code>.</p>
</html>
"""


def _heard(heard: dict[str, Any]) -> str:
    if not heard["recordings"]:
        return "<p>These recordings have no labels, so it is unknown how many were labelled correctly.</p>"
    alone, first_s = heard["on_the_device_alone"], heard["first_right_s"]
    first = "" if first_s is None else f", the first after {first_s:.0f} s"
    by_itself = (
        f"{_right(alone)} ({alone['accuracy']:.0%})"
        if alone["recordings"]
        else "none of them, because it heard none to the end"
    )
    text = (
        f"<p>Of the recordings that were played, {_right(heard)} got their label ({heard['accuracy']:.0%}){first}. "
        "A recording counts once each time it is played, and its label is the one with the highest mean score over its "
        f"windows. <code>pi-alone</code>, which runs the whole encoder and ships nothing, got {by_itself}.</p>"
    )
    rows = [[label, _right(part)] for label, part in heard["by_label"].items()]
    for row in rows:
        confused = [m for m in heard["mistakes"] if row[0] in m["truth"]]
        row.append(", ".join(f"{m['heard']} {m['times']}" for m in confused) or "-")
    return text + _table(["label", "right", "heard instead"], rows)


def _bytes(summary: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{device['seconds']:.0f} s",
            size(device["bytes_as_pcm16"]),
            size(device["bytes_as_opus"]),
            size(device["bytes_sent"]),
            size(device["wire_bytes"]["up"]),
            size(device["wire_bytes"]["down"]),
            size(device["wire_bytes"]["of_it_updates"]),
        ]
        for name, device in summary["devices"].items()
    ]
    head = [
        "device",
        "heard",
        "as 16-bit PCM",
        "as Opus",
        "frames sent",
        "all sent",
        "all received",
        "of both: updates",
    ]
    return (
        f"<p>The frames of the devices that ship are {summary['bytes_saved_share']:.0%} fewer bytes than the same "
        f"audio as 16-bit PCM. Opus is reckoned at {OPUS_KBITS} kbit/s; a server that gets it hears the audio. "
        f"<code>pi-alone</code> is what staying on the device takes: events, reports and updates.</p>"
        + _table(head, rows)
        + '<p class="note">All that is sent and received includes the broker\'s protocol, reports, events, clips that '
        "somebody heard on the page, and the first bundle and later ones (updates), which weigh most in so short a "
        "time.</p>"
    )


def _right(part: dict[str, Any]) -> str:
    return f"{part['right']} of {part['recordings']}"


def _devices(summary: dict[str, Any]) -> str:
    rows = [
        [
            name,
            device["target"],
            device["windows_captured"],
            device["windows_acked"],
            device["windows_lost"],
            ", ".join(f"{cut} {count}" for cut, count in sorted(device["cuts_used"].items())),
            f"{device['generation_start']} → {device['generation_end']}",
            device["table_swaps"],
        ]
        for name, device in summary["devices"].items()
    ]
    head = ["device", "target", "windows", "shipped", "lost", "cuts", "generation", "table swaps"]
    return _table(head, rows) + (
        '<p class="note">A table swap is another splitter table, which a device takes between two windows. All get '
        "one at the start that ships more than the usual one does, so that the server has something to learn from; "
        "<code>pi-lte</code> gets a second one half-way.</p>"
    )


def _traffic(summary: dict[str, Any]) -> str:
    rows = []
    for name, device in summary["devices"].items():
        traffic = DeviceTraffic.of(device)
        rates = (*traffic.hour.traffic, *traffic.month.traffic)
        rows.append([name, *map(size, rates), duration(traffic.month.seconds)])
    head = [column.replace("\n", " ") for column in traffic_lines.COLUMNS]
    return _table([*head, "measured over"], rows)


def _latencies(summary: dict[str, Any]) -> str:
    targets = sorted(summary["predicted_device_ms"])
    rows = [
        [cut, values["windows"], f"{values['p50']:.1f}", f"{values['p95']:.1f}"]
        + [f"{summary['predicted_device_ms'][target][cut]:.1f}" for target in targets]
        for cut, values in summary["latency_ms"].items()
    ]
    return (
        "<p>Medians and 95th percentiles were measured on this machine, whose processors devices and server share, "
        "over emulated links (paced uplink, delay both ways). No Raspberry Pi or laptop was timed: the time of a "
        "device's own part there is predicted from counted work.</p>"
        + _table(
            [
                "cut",
                "windows",
                "median ms",
                "p95 ms",
                *(f"{target}, device's part, predicted ms" for target in targets),
            ],
            rows,
        )
    )


def _releases(summary: dict[str, Any]) -> str:
    released = [row for row in summary["releases"] if row["released"]]
    generations = summary["heard"]["by_generation"].items()
    shares = ", ".join(f"generation {number}: {_right(part)}" for number, part in generations if part["recordings"])
    text = (
        f"<p>The server trained {summary['training_steps']} steps on what arrived, without labels, and released "
        f"{len(released)} new generation{'s' * (len(released) != 1)}. Training changes embeddings, but the head "
        "stays the same. So a release with which the head would label fewer of the labelled recordings correctly is "
        f"refused. Labelled correctly while a generation ran: {shares or 'unknown'}.</p>"
        f"<p>Device, wire and server together are within {summary['parity_max_abs_error']:.1e} of the whole encoder at "
        "every cut of every generation (float32 wire).</p>"
    )
    if not summary["releases"]:
        return f"{text}<p>No release was attempted.</p>"
    refused = [row for row in summary["releases"] if not row["released"]]
    told = [row for row in summary["releases"] if row["released"] or row in refused[-_REFUSED_TOLD:]]
    attempts = "".join(f"<li>{html.escape(attempt_in_words(row))}</li>" for row in told)
    more = f"<li>{len(summary['releases']) - len(told)} earlier attempts were refused, too.</li>"
    return f"{text}<ul>{more * (len(told) < len(summary['releases']))}{attempts}</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'
