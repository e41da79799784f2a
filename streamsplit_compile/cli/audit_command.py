"""`ssc audit`: measures what shipping gives away, by attacks."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.audit.audit_run import AuditPlan, check_key, results_path, run_audit, write_audit
from streamsplit_compile.audit.spoken_recordings import read_spoken
from streamsplit_compile.bundle.bundle_summary import PRIVACY_COLUMNS, privacy_rows, privacy_title
from streamsplit_compile.cli.options import PathParam, bundle_argument, json_option, key_option, read_key, together
from streamsplit_compile.cli.printing import Steps, print_json, print_table

_scope_options = together(
    click.option(
        "--encodings",
        default="int8",
        show_default=True,
        help="Encodings in which devices ship activations, comma-separated.",
    ),
    click.option(
        "--most-recordings",
        type=click.IntRange(50),
        help="Use at most so many recordings, evenly spread [default: all].",
    ),
    click.option(
        "--members",
        is_flag=True,
        help="The weights were trained on all folds of labels.csv but the last: can that be told?",
    ),
)


@click.command("audit")
@bundle_argument
@click.option(
    "--recordings",
    type=PathParam(),
    required=True,
    help="Directory of spoken words: WORD/SPEAKER-TAKE.flac, as in Speech Commands.",
)
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1, 100), help="Times to train each attack.")
@click.option(
    "--hours", default=4.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Stop after this time, h."
)
@_scope_options
@click.option("--samples", type=PathParam(), help="Directory for restored sound to listen to.")
@click.option(
    "-o", "--out", type=PathParam(), help="File of results, to go on from [default: beside the bundle, .audit.jsonl]."
)
@key_option
@json_option
def audit(
    bundle: Path,
    recordings: Path,
    seeds: int,
    hours: float,
    encodings: str,
    most_recordings: int | None,
    members: bool,
    samples: Path | None,
    out: Path | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Attack what a bundle ships, and write down how many words and speakers can be recognised in it.

    Example: ssc audit bundle/ --recordings speech_commands/
    """
    opened, secret = open_bundle(bundle), read_key(key)
    check_key(opened, secret)
    front_end = opened.manifest.info.front_end
    spoken = read_spoken(recordings, front_end.sample_rate, front_end.window_samples, most_recordings)
    plan = AuditPlan(tuple(encodings.split(",")), seeds, hours, members, samples)
    results = out if out is not None else results_path(bundle)
    with Steps(quiet=as_json) as steps:
        found = run_audit(opened, spoken, plan, results, steps)
    write_audit(opened, found, secret)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        print_table(privacy_title(found), list(PRIVACY_COLUMNS), privacy_rows(found))
