"""The systemd unit: valid, tight, and written where it belongs."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from systemd_units import assert_safe, assert_valid, needs_systemd, runs

from runtime_edge import systemd
from runtime_edge.cli import edge_commands
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import UsageError
from runtime_edge.service.systemd_unit import DEVICE
from runtime_edge.settings import read


def install(*arguments):
    return CliRunner().invoke(edge_commands.edge, ["install", *map(str, arguments)])


@pytest.fixture
def root(tmp_path):
    assert install("--systemd", "--root", tmp_path).exit_code == 0
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("version", [252, 254])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path, version):
    assert_valid(DEVICE, tmp_path, version)


@needs_systemd
def test_systemd_rates_the_unit_as_safe(root):
    assert_safe(DEVICE, root)


def test_the_unit_is_watched_restarted_and_nobody_in_particular(root):
    text = (root / "etc/systemd/system/ssc-edge.service").read_text()
    lines = text.splitlines()
    for line in (
        "Type=notify", "WatchdogSec=120", "Restart=always", "DynamicUser=yes", "SupplementaryGroups=audio",
        "StateDirectory=ssc-edge", "PrivateTmp=yes", "ProtectSystem=strict", "NoNewPrivileges=yes",
        "EnvironmentFile=-/etc/default/ssc-edge", "SystemCallFilter=@system-service",
    ):  # fmt: skip
        assert line in lines
    assert runs(DEVICE, root) == ["edge", "run", "--config", "/etc/ssc-edge.toml"]
    assert "RestartSteps" not in text
    assert "RestartSteps=8\nRestartMaxDelaySec=5min\n" in DEVICE.unit(Path("/usr/bin/ssc"), 254)


@pytest.mark.parametrize(
    ("program", "home"), [("/usr/bin/ssc", "yes"), ("/home/pi/.venv/bin/ssc", "read-only"), ("/opt/ssc/bin/ssc", "yes")]
)
def test_a_program_in_somebody_s_home_is_seen_there(program, home):
    assert f"\nProtectHome={home}\n" in DEVICE.unit(Path(program), 252)


def test_the_configuration_is_valid_and_one_that_is_there_is_kept(tmp_path):
    given = tmp_path / "mine.toml"
    given.write_text('broker = "nats://gateway:4222"\nstate = "elsewhere"\n')
    root = tmp_path / "root"
    written = root / "etc/ssc-edge.toml"
    assert install("--systemd", "--root", root, "--config", given).exit_code == 0
    assert read(DeviceConfig, written) == {
        "broker": "nats://gateway:4222", "source": "mic", "state": Path("/var/lib/ssc-edge"),
    }  # fmt: skip
    written.write_text('source = "mic"\n')
    again = install("--systemd", "--root", root)
    assert f"kept {written}" in again.output
    assert written.read_text() == 'source = "mic"\n'


def test_print_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = install("--systemd", "--print", "--root", tmp_path / "root")
    assert "# /etc/systemd/system/ssc-edge.service\n" in shown.output
    assert list(tmp_path.iterdir()) == []


def test_without_root_s_rights_or_systemd_nothing_is_written_and_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(systemd, "systemd_version", lambda: 252)
    with pytest.raises(UsageError, match="sudo"):
        raise install("--systemd").exception
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="no systemd"):
        raise install("--systemd").exception


def test_install_needs_something_to_install():
    with pytest.raises(UsageError, match="give a bundle directory"):
        raise install().exception
