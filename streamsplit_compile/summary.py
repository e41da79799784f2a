"""A bundle as numbers for programs and as a table for people."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import click

from runtime_edge.bundle import Bundle
from runtime_edge.manifest import Cut
from streamsplit_compile.options import print_table, size


def bundle_summary(bundle: Bundle) -> dict[str, Any]:
    """What `--json` prints of a bundle."""
    info = bundle.manifest.info
    exact = min((name for name in info.parity if name.endswith("fp32")), default=None)
    parity = [None] * len(info.cuts) if exact is None else info.parity[exact].max_abs_error
    macs = list(accumulate([0, *(_macs(bundle, block) for block in info.blocks)]))
    return {
        "bundle": str(bundle.path),
        "encoder": info.encoder.id,
        "generation": info.generation,
        "signed": (bundle.path / "manifest.json.minisig").exists(),
        "bytes": sum(bundle.manifest.assets().values()),
        "variants": sorted(next(iter(bundle.manifest.components.values())).variants),
        "parity": {
            name: {
                "max_abs_error": found.max_abs_error,
                "cosine_median": found.cosine_median,
                "cosine_worst": found.cosine_worst,
            }
            for name, found in info.parity.items()
        },
        "calibration": {"source": info.calibration.source, "windows": info.calibration.windows},
        "cuts": [
            {
                "index": cut.index,
                "name": cut.name,
                "shape": list(cut.shape),
                "bytes": cut.bytes,
                "agreement": cut.agreement,
                "macs": macs[cut.index],
                "max_abs_error": parity[cut.index],
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


def print_cuts(bundle: Bundle) -> None:
    """The table of cuts that `ssc compile` and `ssc inspect` print."""
    summary = bundle_summary(bundle)
    targets = list(bundle.manifest.info.targets)
    columns = ["cut", "name", "shape", "wire bytes", "int8 agreement", "MMACs", "max error"]
    columns += [f"{target} ms" for target in targets] + [f"{target} mJ" for target in targets]
    rows = []
    for cut, entry in zip(bundle.manifest.info.cuts, summary["cuts"], strict=True):
        row = [str(cut.index), cut.name, "x".join(map(str, cut.shape[1:])), _wire(cut), _agreement(cut)]
        error = entry["max_abs_error"]
        row += [f"{entry['macs'] / 1e6:.1f}", "-" if error is None else f"{error:.1e}"]
        row += [f"{entry['targets'][target]['ms']:.1f}" for target in targets]
        row += [f"{entry['targets'][target]['mj']:.1f}" for target in targets]
        rows.append(row)
    title = f"{bundle.path}: {summary['encoder']}, generation {summary['generation']}, {size(summary['bytes'])}"
    print_table(title, columns, rows)
    if len(summary["variants"]) > 1:
        print_table(
            "variants: device prefix, float32 wire, torch suffix against the encoder",
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
    if parity is None or not parity.cosine_median:
        return [variant, size(total), "-", "-", "-"]
    errors = [f"{max(parity.max_abs_error):.1e}", f"{min(parity.cosine_median):.5f}", f"{min(parity.cosine_worst):.5f}"]
    return [variant, size(total), *errors]


def _macs(bundle: Bundle, block: str) -> int:
    return bundle.manifest.components[block].additional_metadata.ssc.macs


def _wire(cut: Cut) -> str:
    return " ".join(f"{name} {size(count)}" for name, count in cut.bytes.items() if name != "float32")


def _agreement(cut: Cut) -> str:
    best = cut.agreement.get("int8", cut.agreement.get("pcm16"))
    return "-" if best is None else f"{best:.5f}"
