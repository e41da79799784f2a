"""A bundle's cuts and parity as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from runtime_edge.base.text import size
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.manifest import Cut, Parity
from streamsplit_compile.bundle.bundle_summary import (
    EXIT_COLUMNS,
    PARITY_COLUMNS,
    PRIVACY_COLUMNS,
    WIDTH_COLUMNS,
    bundle_summary,
    exit_rows,
    parity_rows,
    privacy_rows,
    privacy_title,
    useless_cuts,
    width_rows,
)
from streamsplit_compile.bundle.calibrate import calibration_text
from streamsplit_compile.bundle.parity import lowest_median
from streamsplit_compile.cli.printing import print_table


def print_parity(cuts: Sequence[Cut], parity: Mapping[str, Parity]) -> None:
    """The table that `ssc verify` prints."""
    windows = max(found.windows for found in parity.values())
    title = f"largest error, median and worst cosine over {windows} windows"
    print_table(title, list(PARITY_COLUMNS), parity_rows(cuts, parity))
    click.echo("prefix alone: the activation at the cut; wire: the embedding after prefix, wire and torch suffix.")


def print_cuts(bundle: Bundle) -> None:
    """The table of cuts that `ssc compile` and `ssc inspect` print."""
    summary = bundle_summary(bundle)
    targets = list(bundle.manifest.info.targets)
    columns = ["cut", "name", "shape", "wire bytes", "int8 agreement", "MMACs", "max error"]
    columns += [f"{target} ms" for target in targets] + [f"{target} mJ" for target in targets]
    rows = []
    for cut, entry in zip(bundle.manifest.info.cuts, summary["cuts"], strict=True):
        row = [str(cut.index), cut.name, "x".join(map(str, cut.shape[1:])), _wire(cut), _agreement(entry["agreement"])]
        error = entry["max_abs_error"]
        row += [f"{entry['macs'] / 1e6:.3g}", "-" if error is None else f"{error:.1e}"]
        row += [f"{entry['targets'][target]['ms']:.1f}" for target in targets]
        row += [f"{entry['targets'][target]['mj']:.1f}" for target in targets]
        rows.append(row)
    title = f"{bundle.path}: {summary['encoder']}, generation {summary['generation']}, {size(summary['bytes'])}"
    print_table(title, columns, rows)
    if len(summary["variants"]) > 1:
        print_table(
            "variants with the float32 wire, at the worst cut",
            ["variant", "bytes", "largest error", "median cosine", "worst cosine"],
            [_variant_row(bundle, name) for name in summary["variants"]],
        )
    if bottlenecks := bundle.manifest.info.bottlenecks:
        how = "trained" if bottlenecks[0].steps else "closed form"
        if bottlenecks[0].hides:
            how += f" to hide {' and '.join(bottlenecks[0].hides)}"
        print_table(f"bottlenecks, {how}: payloads and embeddings", list(WIDTH_COLUMNS), width_rows(bottlenecks))
    elif useless := useless_cuts(bundle.manifest.info.cuts):
        click.echo(useless)
    if exits := bundle.manifest.info.exits:
        print_table("exits: embeddings from the activation at a cut", list(EXIT_COLUMNS), exit_rows(exits))
    if audited := bundle.manifest.info.privacy:
        print_table(privacy_title(audited), list(PRIVACY_COLUMNS), privacy_rows(audited))
    signed = "signed" if summary["signed"] else "not signed"
    calibrated = calibration_text(bundle.manifest.info)
    adaptable = ", ".join(summary["adaptable"])
    click.echo(f"ms and mJ are predicted for the blocks up to the cut; {calibrated}; {signed}.")
    if adaptable:
        click.echo(f"Devices can be adapted that run {adaptable}.")


def _variant_row(bundle: Bundle, variant: str) -> list[str]:
    """Size of one variant and how close its embedding is, at the worst cut."""
    blocks = bundle.manifest.components.values()
    total = sum(block.variants[variant].executor_info.ssc.bytes for block in blocks)
    parity = bundle.manifest.info.parity.get(variant)
    if parity is None:
        return [variant, size(total), "-", "-", "-"]
    worst = min(exact.cosine_worst for exact in parity.exact)
    return [variant, size(total), f"{max(parity.max_abs_error):.1e}", f"{lowest_median(parity):.5f}", f"{worst:.5f}"]


def _wire(cut: Cut) -> str:
    """Bytes of an activation as devices send it by default, as text."""
    return size(cut.bytes.get("int8", cut.bytes.get("pcm16", 0)))


def _agreement(medians: Mapping[str, float]) -> str:
    best = medians.get("int8", medians.get("pcm16"))
    return "-" if best is None else f"{best:.5f}"
