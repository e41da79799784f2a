"""A bundle as numbers for programs and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import click
import msgspec

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.manifest import Agreement, Cut, Parity
from streamsplit_compile.bundle.parity import lowest_median
from streamsplit_compile.cli.options import print_table, size


def bundle_summary(bundle: Bundle) -> dict[str, Any]:
    """What `--json` prints of a bundle."""
    info = bundle.manifest.info
    exact = min((name for name in info.parity if name.endswith("fp32")), default=None)
    proved = None if exact is None else info.parity[exact]
    macs = list(accumulate([0, *(_macs(bundle, block) for block in info.blocks)]))
    return {
        "bundle": str(bundle.path),
        "encoder": info.encoder.id,
        "generation": info.generation,
        "signed": (bundle.path / "manifest.json.minisig").exists(),
        "bytes": sum(bundle.manifest.assets().values()),
        "variants": sorted(next(iter(bundle.manifest.components.values())).variants),
        "parity": parity_summary(info.cuts, info.parity),
        "calibration": {"source": info.calibration.source, "windows": info.calibration.windows},
        "cuts": [
            {
                "index": cut.index,
                "name": cut.name,
                "shape": list(cut.shape),
                "bytes": cut.bytes,
                "agreement": {} if proved is None else cut.agreement,
                "macs": macs[cut.index],
                "max_abs_error": None if proved is None else proved.max_abs_error[cut.index],
                "targets": {
                    name: {
                        "ms": round(sum(cost.block_ms[: cut.index]), 3),
                        "mj": round(sum(cost.block_mj[: cut.index]), 3),
                    }
                    for name, cost in info.targets.items()
                },
            }
            for cut in info.cuts
        ],
    }


def parity_summary(cuts: Sequence[Cut], parity: Mapping[str, Parity]) -> dict[str, dict[str, Any]]:
    """Parity by variant and name of the cut: of the prefix alone, and by wire encoding of the embedding."""
    return {
        variant: dict(zip((cut.name for cut in cuts), msgspec.to_builtins(found.cuts), strict=True))
        for variant, found in parity.items()
    }


PARITY_COLUMNS = ("variant", "cut", "prefix alone", "float32 wire", "float16 or PCM wire", "int8 wire")


def parity_rows(cuts: Sequence[Cut], parity: Mapping[str, Parity]) -> list[list[str]]:
    """One row for each variant and cut under `PARITY_COLUMNS`: largest error, median and worst cosine."""
    rows = []
    for variant, found in parity.items():
        for cut, proved in zip(cuts, found.cuts, strict=True):
            half = proved.wire.get("float16", proved.wire.get("pcm16"))
            measured = (proved.prefix, proved.wire.get("float32"), half, proved.wire.get("int8"))
            rows.append([variant, cut.name, *(_numbers(item) for item in measured)])
    return rows


def print_parity(cuts: Sequence[Cut], parity: Mapping[str, Parity]) -> None:
    """The table that `ssc verify` prints."""
    windows = max(found.windows for found in parity.values())
    title = f"largest error, median and worst cosine over {windows} windows"
    print_table(title, list(PARITY_COLUMNS), parity_rows(cuts, parity))
    click.echo("prefix alone: the activation at the cut; wire: the embedding after prefix, wire and torch suffix.")


def _numbers(agreement: Agreement | None) -> str:
    if agreement is None:
        return ""
    return f"{agreement.max_abs_error:.0e} {agreement.cosine_median:.5f} {agreement.cosine_worst:.5f}"


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
    signed = "signed" if summary["signed"] else "not signed"
    calibration = summary["calibration"]
    click.echo(
        f"ms and mJ are predicted for the blocks up to the cut. Calibrated on {calibration['source']} "
        f"({calibration['windows']} windows); {signed}."
    )


def _variant_row(bundle: Bundle, variant: str) -> list[str]:
    """Size of one variant and how near its embedding is, at the worst cut."""
    blocks = bundle.manifest.components.values()
    total = sum(block.variants[variant].executor_info.ssc.bytes for block in blocks)
    parity = bundle.manifest.info.parity.get(variant)
    if parity is None:
        return [variant, size(total), "-", "-", "-"]
    worst = min(exact.cosine_worst for exact in parity.exact)
    return [variant, size(total), f"{max(parity.max_abs_error):.1e}", f"{lowest_median(parity):.5f}", f"{worst:.5f}"]


def _macs(bundle: Bundle, block: str) -> int:
    return bundle.manifest.components[block].additional_metadata.ssc.macs


def _wire(cut: Cut) -> str:
    return " ".join(f"{name} {size(count)}" for name, count in cut.bytes.items() if name != "float32")


def _agreement(medians: Mapping[str, float]) -> str:
    best = medians.get("int8", medians.get("pcm16"))
    return "-" if best is None else f"{best:.5f}"
