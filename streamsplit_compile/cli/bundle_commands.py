"""`ssc inspect`, `ssc verify`, `ssc diff` and `ssc key`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runtime_edge.base.text import size
from runtime_edge.errors import BundleError, UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.manifest import Parity
from runtime_edge.formats.patch import make_patch
from runtime_edge.inference.cut_assets.loaded import self_test as self_tested
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.bundle_summary import bundle_summary, parity_summary
from streamsplit_compile.bundle.calibrate import calibration_set_for, collect_activations
from streamsplit_compile.bundle.compiler import bundle_variants
from streamsplit_compile.bundle.digests import weights_digest
from streamsplit_compile.bundle.parity import FP32_LIMIT, Prover, shortfalls
from streamsplit_compile.cli.options import (
    PathParam,
    bundle_argument,
    encoder_options,
    json_option,
    pub_option,
    read_pub,
)
from streamsplit_compile.cli.printing import Steps, print_json, print_table, print_warning
from streamsplit_compile.cli.tables.bundle_tables import print_cuts, print_parity
from streamsplit_compile.cli.tables.record_tables import print_record, record_summary
from streamsplit_compile.encoder.encoders import LoadedEncoder, load_encoder
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.encoder.selection import cuts_of


@click.command()
@click.argument("bundle", metavar="BUNDLE|FILE", type=PathParam())
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show a bundle's cuts, sizes and predicted costs, or what a table, head, adaptation or sub-model contains.

    Example: ssc inspect bundle/
    """
    if bundle.is_file():
        summary = record_summary(bundle)
        if as_json:
            print_json(summary)
        else:
            print_record(bundle, summary)
        return
    opened = open_bundle(bundle)
    if as_json:
        print_json(bundle_summary(opened))
    else:
        print_cuts(opened)


@click.command()
@bundle_argument
@pub_option
@click.option("--encoder", type=PathParam(), help="Also compare every cut with this encoder.")
@click.option("--calibrate", type=PathParam(), help="Directory of recordings to check parity on.")
@encoder_options
@json_option
def verify(
    bundle: Path,
    pub: Path | None,
    encoder: Path | None,
    calibrate: Path | None,
    factory: str | None,
    sample_rate: int | None,
    unsafe_load: bool,
    front_end: str | None,
    as_json: bool,
) -> None:
    """Check a bundle: digests, signature, tables, self-test and, given the encoder, parity of every cut.

    Example: ssc verify bundle/ --encoder encoder.pt --pub signing.pub
    """
    opened = open_bundle(bundle, read_pub(pub))
    checked = opened.verify_assets()
    for target in opened.manifest.info.targets:
        opened.table(target)
    self_test = max(self_tested(Prefix(opened, variant)) for variant in bundle_variants(opened.manifest))
    cuts, parity = opened.manifest.info.cuts, opened.manifest.info.parity
    if encoder is not None:
        with Steps(quiet=as_json) as steps:
            steps("exporting", 0, 1)
            recorded = opened.manifest.info.encoder.load
            loaded = load_encoder(encoder, factory, sample_rate, unsafe_load, recorded, front_end)
            if opened.manifest.info.encoder.weights != weights_digest(loaded.tensors):
                raise BundleError(f"{bundle}: compiled from other weights than {encoder}; compile it again")
            parity = _parity(opened, loaded, calibrate, steps)
    if as_json:
        print_json(
            {
                "bytes": checked,
                "signature": opened.signed_by,
                "self_test_error": self_test,
                "parity": parity_summary(cuts, parity),
                "parity_measured": "now" if encoder is not None else "when it was compiled",
            }
        )
    else:
        click.echo(f"{bundle}: {size(checked)} match their digests, self-test off by {self_test:.1e}")
        click.echo(f"signature: {opened.signed_by or 'not checked (give --pub)'}")
        _print_parity(opened, parity, measured=encoder is not None)
    for line in shortfalls(opened.manifest.info.blocks, parity):
        print_warning(line)


def _print_parity(bundle: Bundle, parity: dict[str, Parity], measured: bool) -> None:
    if not parity:
        click.echo("parity: never measured for these weights (give --encoder)")
        return
    worst = max(max(found.max_abs_error) for name, found in parity.items() if name.endswith("fp32"))
    held = f"every float32 cut reproduces the encoder within {max(worst, FP32_LIMIT):.0e}"
    click.echo(held if measured else f"{held}, as the compiler stated it (give --encoder to measure it again)")
    print_parity(bundle.manifest.info.cuts, parity)


def _parity(bundle: Bundle, encoder: LoadedEncoder, calibrate: Path | None, steps: Steps) -> dict[str, Parity]:
    """Parity by variant: how closely the device's prefix with the encoder's suffix reproduces the encoder.

    Raises CheckFailed when a float32 variant is off by more than 1e-4, or by that share of the largest value.
    """
    info = bundle.manifest.info
    segments = split(encoder.graph, cuts_of(encoder.graph.candidates, bundle.manifest, str(bundle.path)))
    windows = calibration_set_for(info, calibrate).measured
    prover = Prover(segments, windows, print_warning)
    found = {}
    for variant in bundle_variants(bundle.manifest):
        activations = collect_activations(Prefix(bundle, variant), windows)
        found[variant] = prover.prove(info.cuts, activations, steps)
        if variant.endswith("fp32"):
            prover.check(info.cuts, found[variant])
    return found


@click.command()
@click.argument("old", type=PathParam())
@click.argument("new", type=PathParam())
@json_option
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Show which blocks and bottlenecks changed between two bundles and what a device has to fetch.

    Example: ssc diff bundle-1/ bundle-2/
    """
    before, after = open_bundle(old), open_bundle(new)
    rows: list[dict[str, Any]] = []
    there = before.manifest.assets()
    for variant in after.manifest.variants:
        known = before.manifest.device_files(variant) if variant in before.manifest.variants else {}
        for name, (file, _) in after.manifest.device_files(variant).items():
            if file not in there:
                earlier, _ = known.get(name, (None, 0))
                data = after.read(file)
                patch = len(data) if earlier is None else len(make_patch(before.read(earlier), data))
                rows.append({"block": name, "variant": variant, "bytes": len(data), "patch": min(patch, len(data))})
    total, patches = sum(row["bytes"] for row in rows), sum(row["patch"] for row in rows)
    if as_json:
        print_json({"changed": rows, "bytes": total, "patch_bytes": patches})
        return
    print_table(
        f"{old} -> {new}: {len(rows)} files change, {size(total)} in full, {size(patches)} as patches",
        ["file", "variant", "bytes", "patch"],
        [[row["block"], row["variant"], size(row["bytes"]), size(row["patch"])] for row in rows],
    )


@click.group()
def key() -> None:
    """Make signing keys.

    Example: ssc key new -o signing.key
    """


@key.command()
@click.option("-o", "--out", type=PathParam(), required=True, help="Secret key file; the public half goes beside it.")
@json_option
def new(out: Path, as_json: bool) -> None:
    """Make a minisign-compatible Ed25519 key pair.

    Example: ssc key new -o signing.key
    """
    if out.exists():
        raise UsageError(f"{out}: exists; a key is never overwritten")
    public = minisign.write_key_pair(minisign.generate_key(), out)
    if as_json:
        print_json({"secret_key": str(out), "public_key": str(public)})
    else:
        click.echo(f"secret key {out} (keep it off devices), public key {public}")
