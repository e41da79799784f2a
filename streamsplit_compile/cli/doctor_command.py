"""`ssc doctor`. Imports nothing that a device may lack."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from runtime_edge.errors import CheckFailed
from runtime_edge.formats import minisign
from streamsplit_compile.cli.doctor import MachineFacts, examine, examine_bundle

_MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--pub", type=click.Path(path_type=Path), help="Public key that must have signed the bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def doctor(bundle: Path | None, pub: Path | None, as_json: bool) -> None:
    """Check what is missing or will not work here, and how to fix it. With a bundle, check that it runs.

    Example: ssc doctor bundle/
    """
    machine = MachineFacts.here()
    findings = examine(machine)
    if bundle is not None and machine.runtimes_load:  # a runtime that crashes the process would lose the findings
        findings += examine_bundle(bundle, None if pub is None else minisign.read_public_key(pub))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{_MARKS[finding.state]} {finding.what}: {finding.detail}")
            if finding.mend and finding.state != "ok":
                click.echo(f"        -> {finding.mend}")
    problems = [finding for finding in findings if finding.state == "problem"]
    if problems:
        raise CheckFailed(f"{len(problems)} problem(s): {', '.join(finding.what for finding in problems)}")
