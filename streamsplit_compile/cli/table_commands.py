"""`ssc splitter eval`, `replay` and `map`, which show how good a table is and what it chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from runtime_edge.errors import CheckFailed, UsageError
from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.cli.options import PathParam, json_option, profile_option, renamed
from streamsplit_compile.cli.printing import print_json, print_table
from streamsplit_compile.cli.splitter_commands import (
    bundle_environment,
    read_table,
    seed_option,
    traces_of,
    traces_option,
)
from streamsplit_compile.splitter.evaluation import Consequences, Evaluation, evaluate
from streamsplit_compile.splitter.result_replay import read_results
from streamsplit_compile.splitter.result_replay import replay as replay_results


@click.command("eval")
@click.argument("table", type=PathParam())
@click.option("--bundle", type=PathParam(), help="Take the costs from this bundle [default: those in the table].")
@profile_option
@traces_option
@seed_option
@click.option("--plot", type=PathParam(), help="Write a picture (.svg or .png).")
@click.option("--max-regret", type=click.FloatRange(0), help="Fail (exit code 1) when the regret is above this.")
@json_option
def evaluate_command(
    table: Path,
    bundle: Path | None,
    profile_file: Path | None,
    traces: str,
    seed: int,
    plot: Path | None,
    max_regret: float | None,
    as_json: bool,
) -> None:
    """Compare a table with fixed cuts, the heuristic rule and the exact optimum on held-out traces.

    Example: ssc splitter eval bundle/tables/rpi4.json --traces wifi --plot eval.svg
    """
    read = read_table(table)
    environment = None
    if bundle is not None:
        opened = open_bundle(bundle)
        read.check_cuts([cut.name for cut in opened.manifest.info.cuts])
        environment = bundle_environment(opened, read.target, read.reward, read.limits, profile_file)
        environment = replace(environment, uplink=read.uplink)
        if tuple(action.name for action in environment.actions) != read.actions:
            raise UsageError(f"--bundle {bundle}: the table's actions are {', '.join(read.actions)}, not the bundle's")
    elif profile_file is not None:
        raise UsageError("--profile needs --bundle, whose costs it replaces")
    found = evaluate(read, traces_of(traces, seed)[1], environment)
    if plot is not None:
        # matplotlib is slow to import; only a plot needs it.
        from streamsplit_compile.splitter.table_plots import draw_evaluation

        draw_evaluation(found, f"{read.encoder} on {read.target}: {traces}", plot)
    if as_json:
        print_json(
            {name: vars(row) for name, row in policies(found).items()}
            | {"regret": found.regret, "best_fixed": found.best_fixed}
        )
    else:
        _print_evaluation(found, f"{read.encoder} on {read.target}, held-out traces: {traces}")
    if max_regret is not None and found.regret > max_regret:
        raise CheckFailed(f"regret {found.regret:.4f} is above {max_regret:g}")


@click.command()
@click.argument("results", type=PathParam())
@click.argument("table", type=PathParam())
@json_option
def replay(results: Path, table: Path, as_json: bool) -> None:
    """Replay a device's recorded results (`ssc edge run --results`) with a table.

    Example: ssc splitter replay results.jsonl table.json
    """
    found = replay_results(read_table(table), read_results(results))
    if as_json:
        print_json({**vars(found), "recorded": vars(found.recorded), "table": vars(found.table)})
        return
    print_table(
        f"{results}: {found.windows} windows, another cut in {found.changed:.0%}",
        ["cut", "recorded", "table"],
        [[name, f"{share:.1%}", f"{found.chosen[name]:.1%}"] for name, share in found.taken.items()],
    )
    _print_policies("by the table's costs", {"recorded": found.recorded, "table": found.table})
    click.echo(f"  measured latency {found.measured_latency_ms:.1f} ms")


@click.command("map")
@click.argument("table", type=PathParam())
@click.option("-o", "--out", type=PathParam(), required=True, help="Picture to write (.svg or .png).")
@renamed(
    "--rtt-ms", "--rtt", "rtt_ms", default=60.0, show_default=True, type=click.FloatRange(0), help="Round trip, ms."
)
@json_option
def map_command(table: Path, out: Path, rtt_ms: float, as_json: bool) -> None:
    """Draw the chosen cut over bandwidth and CPU load for three levels of uncertainty.

    Example: ssc splitter map bundle/tables/rpi4.json -o rpi4.svg
    """
    from streamsplit_compile.splitter.table_plots import draw_map

    draw_map(read_table(table), rtt_ms, out)
    print_json({"file": str(out)}) if as_json else click.echo(f"{out}: written")


def policies(found: Evaluation) -> dict[str, Consequences]:
    """The compared policies by name, the table first."""
    fixed = {f"always {name}": row for name, row in found.fixed.items()}
    return {
        "table": found.table,
        "optimum": found.optimum,
        "heuristic rule": found.rule,
        **fixed,
        "device only": found.device_only,
    }


def _print_evaluation(found: Evaluation, title: str) -> None:
    _print_policies(title, policies(found))
    click.echo(f"  regret {found.regret:.4f} (0: optimal, 1: no better than always {found.best_fixed})")
    first = next(iter(found.fixed))
    click.echo(f"  `always {first}` is server-only where that is the first cut; `device only` ships nothing")


def _print_policies(title: str, rows: dict[str, Consequences]) -> None:
    columns = ["policy", "reward", "agreement", "latency ms", "p95 ms", "energy mJ", "MB/h", "changes/min"]
    print_table(
        title,
        columns,
        [
            [
                name,
                f"{row.reward:.3f}",
                f"{row.agreement:.4f}",
                f"{row.latency_ms:.1f}",
                f"{row.latency_p95_ms:.0f}",
                f"{row.energy_mj:.1f}",
                f"{row.mb_per_hour:.2f}",
                f"{row.changes_per_minute:.2f}",
            ]
            for name, row in rows.items()
        ],
    )
