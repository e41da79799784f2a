"""`ssc bench device`: needs only what is installed on a device."""

from __future__ import annotations

import itertools
from pathlib import Path

import click

from runtime_edge.base.files import write_atomic
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.records.device_bench import MeasuredVariant
from runtime_edge.inference.processor import is_target
from runtime_edge.measure.meters import AUTO, open_meter
from runtime_edge.measure.variant_times import BenchSettings, bench_device


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="The target this device is.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option(
    "--runs", default=50, show_default=True, type=click.IntRange(1, 100_000), help="Timed runs of each block."
)
@click.option(
    "--meter", default=AUTO, show_default=True, help="auto, none, rapl, ina, pmic or powermetrics: what counts energy."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def device(bundle: Path, target: str, out: Path, runs: int, meter: str, as_json: bool) -> None:
    """Measure this device: the time of every block in every variant, memory, and energy if there is a meter.

    `ssc compile`, `ssc splitter train` and `ssc bench run` use the file instead of their predictions (--profile).

    Example: ssc bench device bundle/ --target rpi4 -o device.json
    """
    opened = open_bundle(bundle)
    with open_meter(meter) as (found, why_none):
        if found is None:
            click.echo(f"no energy: {why_none}", err=True)
        measured = bench_device(
            opened, target, BenchSettings(runs), found, lambda what: click.echo(f"measuring {what}", err=True)
        )
    write_atomic(out, measured.to_json())
    if not is_target(target, measured.machine["processor"], measured.machine["architecture"]):
        where = measured.machine["processor"] or measured.machine["architecture"]
        click.echo(f"warning: measured on {where}, which is not the target {target}; times there will differ", err=True)
    if as_json:
        click.echo(measured.to_json().decode(), nl=False)
        return
    click.echo(f"{out}: {measured.encoder}, {measured.machine['processor'] or measured.machine['architecture']}")
    for one in sorted(measured.variants, key=lambda one: one.whole_ms):
        energy = "" if one.block_mj is None else f", {sum(one.block_mj):.1f} mJ above idle"
        click.echo(
            f"  {one.variant} on {one.provider}, {one.threads} thread(s): {one.whole_ms:.2f} ms{energy}, "
            f"{one.memory_mb:.0f} MB"
        )
    for name, why in measured.skipped.items():
        click.echo(f"  {name}: not measured, {why}")
    best, cuts = measured.fastest(), [cut.name for cut in opened.manifest.info.cuts]
    click.echo(f"up to each cut, {best.variant} on {best.provider}, {best.threads} thread(s):")
    for line in _cuts(best, cuts):
        click.echo(f"  {line}")


def _cuts(best: MeasuredVariant, cuts: list[str]) -> list[str]:
    times = itertools.accumulate(best.block_ms)
    energies = itertools.accumulate(best.block_mj) if best.block_mj is not None else itertools.repeat(None)
    return [
        f"{name}: {ms:.2f} ms" + ("" if mj is None else f", {mj:.1f} mJ")
        for name, ms, mj in zip(cuts[1:], times, energies)  # noqa: B905  # one is endless
    ]
