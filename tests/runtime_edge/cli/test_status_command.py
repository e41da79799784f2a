"""`ssc edge status` of a device that has not run, and of a bundle that waits for the next start."""

import json

import pytest

from runtime_edge.errors import CheckFailed
from runtime_edge.updates.bundle_store import BundleStore
from streamsplit_compile.cli.main import ssc


@pytest.fixture
def status(tmp_path, capsys):
    """`status(*options)`: (what is printed, what the error says)."""

    def call(*options):
        try:
            ssc.main(["edge", "status", "--state", str(tmp_path), *options], "ssc", standalone_mode=False)
            error = None
        except CheckFailed as exc:
            error = str(exc)
        return capsys.readouterr().out, error

    return call


def test_an_empty_state_directory_has_nothing(status, tmp_path):
    assert status() == ("", f"{tmp_path}: no device has run from this state directory")
    assert status("--json")[0] == ""


def test_an_installed_bundle_is_shown_before_the_first_start(status, small_bundle, tmp_path):
    installed = BundleStore(tmp_path, None).install_local(small_bundle.path)
    said, error = status()
    assert f"installed generation 1 of toys:Tiny, {installed.digest[:19]}, runs from the next start on" in " ".join(
        said.split()
    )
    assert "not started yet" in said
    assert error.endswith("no device has run from this state directory")
    found = json.loads(status("--json")[0])
    assert found["installed"] == {"digest": installed.digest, "generation": 1, "encoder": "toys:Tiny"}
    assert found["healthy"] is False


def test_a_damaged_one_is_told(status, small_bundle, tmp_path):
    installed = BundleStore(tmp_path, None).install_local(small_bundle.path)
    manifest = installed.path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    assert f"{manifest}: " in status()[0]
