"""`ssc audit`, and what `ssc inspect` and `ssc splitter train` make of it."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from speech import write_speech

from runtime_edge.errors import BundleError, UsageError
from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.cli.advise_command import advise_
from streamsplit_compile.cli.audit_command import audit
from streamsplit_compile.cli.bundle_commands import inspect
from streamsplit_compile.cli.splitter_commands import read_table, train

RUNNER = CliRunner()


def run(command, *arguments):
    return RUNNER.invoke(command, list(map(str, arguments)), catch_exceptions=False)


def test_an_audit_is_shown_and_becomes_a_floor_of_a_table(calibrated_bundle, tmp_path):
    bundle = Path(shutil.copytree(calibrated_bundle.path, tmp_path / "bundle"))
    speech = write_speech(tmp_path / "speech")
    with pytest.raises(UsageError, match="give --key"):
        run(audit, bundle, "--recordings", speech)
    for signature in bundle.rglob("*.minisig"):
        signature.unlink()
    limit = ("--target", "rpi4", "-o", tmp_path / "table.json", "--max-word-recognition")
    with pytest.raises(BundleError, match="never audited"):
        run(train, bundle, *limit, 0.5)

    found = json.loads(run(audit, bundle, "--recordings", speech, "--json").output)

    manifest = open_bundle(bundle).manifest
    assert len(found["shipped"]) == len(manifest.info.cuts) + sum(map(len, manifest.widths.values()))
    assert (tmp_path / "bundle.audit.jsonl").exists()
    shown = run(inspect, bundle).output
    assert "what payloads give away: words of 2 (chance 50 %)" in shown
    assert "words recognisable in what it ships: from " in run(advise_, bundle).output
    assert json.loads(run(inspect, bundle, "--json").output)["privacy"] == found
    least = min(leak["words"]["high"] for leak in found["shipped"])
    with pytest.raises(BundleError, match="nothing that this bundle ships keeps it"):
        run(train, bundle, *limit, least - 0.01)
    run(train, bundle, *limit, 1.0, "--traces", "wifi")
    assert read_table(tmp_path / "table.json").actions
