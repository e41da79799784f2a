"""The page beside a compiled bundle: every cut's latency on every target, and its bytes compared with audio codecs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import accumulate

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.manifest import BundleInfo, Cut
from runtime_edge.formats.records.actions import ActionCosts, action_name
from streamsplit_compile.bundle.bundle_summary import (
    EXIT_COLUMNS,
    PARITY_COLUMNS,
    PRIVACY_COLUMNS,
    WIDTH_COLUMNS,
    exit_rows,
    parity_rows,
    privacy_rows,
    privacy_title,
    width_rows,
)
from streamsplit_compile.bundle.calibrate import calibration_text
from streamsplit_compile.splitter.pricing import bundle_actions, default_encoding

BANDWIDTHS_MBPS = (0.1, 0.5, 2.0, 8.0)
ROUND_TRIP_MS = 50.0
OPUS_KBITS = 16
_COLOURS = {"device": "#0b7189", "network": "#e07a1f", "server": "#6a994e"}
_LABEL, _WIDTH, _ROW = 190, 560, 22
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; margin: 1rem 0 .2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
.wide { font-size: .85rem; overflow-x: auto; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
svg text { font: 12px system-ui, sans-serif; } .note { color: #666; }
"""

Bar = tuple[str, list[tuple[str, float]]]
"""A label and its parts (colour, value)."""


def render_report(bundle: Bundle) -> bytes:
    """The page as HTML with its pictures inline; the same bundle gives the same bytes."""
    info = bundle.manifest.info
    sections = "".join(_target_section(bundle, target) for target in info.targets)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(info.encoder.id)}, generation {info.generation}</title><style>{_CSS}</style>
<h1>{escape(info.encoder.id)}, generation {info.generation}</h1>
<p>{len(info.blocks)} blocks, {len(info.cuts)} cuts; {escape(calibration_text(info))}.
A window is {_seconds(info, info.front_end.window_samples):g} s of audio,
one every {_seconds(info, info.front_end.hop_samples):g} s.</p>
<h2>Cuts</h2>{_cut_table(bundle)}
<h2>Parity</h2><div class="wide">{_table(PARITY_COLUMNS, parity_rows(info.cuts, info.parity))}</div>
<p class="note">Against the encoder in float32: largest error, median and worst cosine over the windows measured. Of
the prefix alone it is the activation at the cut, of the wire encodings the embedding after prefix, wire and torch
suffix.</p>
{_assets(info)}<h2>Bytes for each window</h2>{_bytes_picture(info)}
<p class="note">Bytes on the wire are medians over the calibration windows, zstd included. A codec need only send the
audio that is new since the last window.</p>
<h2>Latency</h2>
<p class="note">Predicted: device at no other load, {ROUND_TRIP_MS:g} ms round trip, server as
<code>x86-64</code>. Measure your own with <code>ssc profile</code>.{_FIRST if info.exits else ""}</p>
{sections}</html>
"""
    return page.encode()


_FIRST = """ Where an exit answers (<code>+exit</code>) the device's part is all that its first answer takes; the whole
bar is the server's after it."""


def _assets(info: BundleInfo) -> str:
    """The tables of bottlenecks, exits and an audit, as in `ssc inspect`."""
    found = ""
    if info.bottlenecks:
        how = "trained" if info.bottlenecks[0].steps else "in closed form"
        if info.bottlenecks[0].hides:
            how += f" to hide {' and '.join(info.bottlenecks[0].hides)}"
        found += f"""<h2>Bottlenecks</h2><div class="wide">{_table(WIDTH_COLUMNS, width_rows(info.bottlenecks))}</div>
<p class="note">Fitted {how}. Payloads, and embeddings after prefix, bottleneck, wire, decoder and torch suffix, on
windows that fitted nothing.</p>
"""
    if info.exits:
        found += f"""<h2>Exits</h2><div class="wide">{_table(EXIT_COLUMNS, exit_rows(info.exits))}</div>
<p class="note">How near the embedding that an exit makes of the activation at its cut comes to the whole encoder's, on
windows that fitted nothing.</p>
"""
    if info.privacy:
        title, rows = privacy_title(info.privacy), _table(PRIVACY_COLUMNS, privacy_rows(info.privacy))
        found += f"""<h2>What it gives away</h2><div class="wide">{rows}</div>
<p class="note">{escape(title[0].upper() + title[1:])}. Image error: of the restored log-mel image,
as a share of the mean image's. STOI: how intelligible the restored sound is, 1 at most. By <code>ssc audit</code>.</p>
"""
    return found


def _cut_table(bundle: Bundle) -> str:
    info = bundle.manifest.info
    macs = accumulate([0, *(bundle.manifest.components[b].additional_metadata.ssc.macs for b in info.blocks)])
    head = ["cut", "name", "shape", "MMACs before", "default encoding", "bytes", "agreement"]
    rows = []
    for cut, done in zip(info.cuts, macs, strict=True):
        encoding = default_encoding(cut, len(info.cuts))
        row = [str(cut.index), cut.name, "x".join(map(str, cut.shape[1:])), f"{done / 1e6:.3g}", encoding]
        row += [f"{cut.bytes[encoding]:,}", f"{cut.agreement.get(encoding, float('nan')):.5f}"]
        rows.append(row)
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _bytes_picture(info: BundleInfo) -> str:
    hop_s = _seconds(info, info.front_end.hop_samples)
    bars: list[Bar] = [
        ("16-bit PCM, new audio", [("#999", info.front_end.hop_samples * 2.0)]),
        (f"Opus at {OPUS_KBITS} kbit/s, new audio", [("#999", OPUS_KBITS * 125 * hop_s)]),
    ]
    widths = {bottleneck.cut: bottleneck.widths for bottleneck in info.bottlenecks}
    for cut in info.cuts:
        bars.append((_name(cut), [(_COLOURS["device"], float(_bytes(info, cut)))]))
        bars += [
            (action_name(cut.name, one.width), [(_COLOURS["device"], float(one.bytes))])
            for one in widths.get(cut.name, ())
        ]
    return _bar_chart(bars, lambda value: f"{value:,.0f} B")


def _target_section(bundle: Bundle, target: str) -> str:
    actions = bundle_actions(bundle.manifest, target)
    charts = "".join(
        f"<h3>{bandwidth:g} Mbit/s</h3>{_bar_chart([_latency(a, bandwidth) for a in actions], _milliseconds)}"
        for bandwidth in BANDWIDTHS_MBPS
    )
    legend = " ".join(f'<span style="color:{colour}">&#9632;</span> {part}' for part, colour in _COLOURS.items())
    return f"<h2>{escape(target)}</h2><p>{legend}</p>{charts}"


def _latency(action: ActionCosts, bandwidth_mbps: float) -> Bar:
    network_ms = action.bytes / (bandwidth_mbps * 125.0) + ROUND_TRIP_MS
    parts = [("device", action.device_ms), ("network", network_ms), ("server", action.server_ms)]
    return action.name, [(_COLOURS[part], value) for part, value in parts]


def _bar_chart(bars: Sequence[Bar], describe: Callable[[float], str]) -> str:
    """Horizontal stacked bars as inline SVG."""
    longest = max(sum(value for _, value in parts) for _, parts in bars) or 1.0
    rows = []
    for index, (label, parts) in enumerate(bars):
        y, x = index * _ROW, float(_LABEL)
        rows.append(f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        for colour, value in parts:
            width = value / longest * _WIDTH
            rows.append(f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}" fill="{colour}"/>')
            x += width
        total = sum(value for _, value in parts)
        rows.append(f'<text x="{x + 6:.1f}" y="{y + 15}">{escape(describe(total))}</text>')
    size = f"{_LABEL + _WIDTH + 90} {len(bars) * _ROW + 4}"
    return f'<svg viewBox="0 0 {size}" width="100%" role="img">{"".join(rows)}</svg>'


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms"


def _bytes(info: BundleInfo, cut: Cut) -> int:
    return cut.bytes[default_encoding(cut, len(info.cuts))]


def _name(cut: Cut) -> str:
    return f"cut {cut.index}: {cut.name}"


def _seconds(info: BundleInfo, samples: int) -> float:
    return samples / info.front_end.sample_rate
