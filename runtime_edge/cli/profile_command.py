"""`ssc profile`: needs only what is installed on a device."""

from __future__ import annotations

from pathlib import Path

import click

from runtime_edge.base.files import write_atomic
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.inference.profile import measure_profile
from runtime_edge.inference.variants import AUTO, choose_variant, runtime_options


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="The target this device is.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Profile to write.")
@click.option("--variant", default=AUTO, show_default=True, help="Which compiled files to run.")
@click.option("--threads", type=click.IntRange(1, 64), help="Inference threads [default: the target's].")
@click.option(
    "--runs", default=50, show_default=True, type=click.IntRange(1, 100_000), help="Timed runs of each block."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def profile(bundle: Path, target: str, out: Path, variant: str, threads: int | None, runs: int, as_json: bool) -> None:
    """Measure every block on this device; the profile replaces a target's estimates.

    Example: ssc profile bundle/ --target rpi4 -o profile.json
    """
    opened = open_bundle(bundle)
    variant = choose_variant(opened.manifest, variant, target)
    threads = runtime_options(opened.manifest, target, threads).threads
    measured = measure_profile(opened, target, variant, threads, runs)
    write_atomic(out, measured.to_json())
    if measured.elsewhere:
        click.echo(
            f"warning: measured on {measured.elsewhere}, which is not the target {target}; times there will differ",
            err=True,
        )
    if as_json:
        click.echo(measured.to_json().decode(), nl=False)
        return
    predicted = opened.manifest.info.targets.get(target)
    click.echo(f"{out}: {measured.encoder} ({variant}), {measured.machine['runtime']}, {threads} thread(s)")
    for index, (name, ms, p90) in enumerate(
        zip(measured.blocks, measured.block_ms, measured.block_p90_ms, strict=True)
    ):
        estimate = "" if predicted is None else f", predicted for {target} {predicted.block_ms[index]:.2f} ms"
        click.echo(f"  {name}: median {ms:.2f} ms, p90 {p90:.2f} ms{estimate}")
    click.echo(f"  whole: {sum(measured.block_ms):.2f} ms, {measured.memory_mb:.0f} MB in memory")
