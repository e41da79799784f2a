"""The server's service: a valid and tight unit, files where they belong, and nothing of an earlier one lost."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from systemd_units import assert_safe, assert_valid, needs_systemd, runs

from runtime_edge.errors import BundleError, UsageError
from runtime_edge.settings import read
from runtime_server.cli.server_commands import server
from runtime_server.serving.server_settings import ServerSettings
from runtime_server.serving.server_unit import SERVER


@pytest.fixture
def install(tiny_file, small_bundle):
    def install(*arguments):
        return CliRunner().invoke(server, ["install", str(tiny_file), str(small_bundle.path), *map(str, arguments)])

    return install


@pytest.fixture
def root(install, tmp_path):
    assert install("--root", tmp_path / "root").exit_code == 0
    return tmp_path / "root"


@needs_systemd
@pytest.mark.parametrize("version", [252, 254])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path, version):
    assert_valid(SERVER, tmp_path, version)


@needs_systemd
def test_systemd_rates_the_unit_as_safe(root):
    assert_safe(SERVER, root)


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_its_user_is_one_that_systemd_can_make(root):
    command = ["systemd-sysusers", "--root", root]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    (line,) = (root / "etc/passwd").read_text().splitlines()
    assert line.startswith("ssc-server:")
    assert ":/var/lib/ssc-server:" in line


def test_it_runs_what_was_copied_with_the_settings_that_were_written(root, tiny_file, small_bundle):
    lines = (root / "etc/systemd/system/ssc-server.service").read_text().splitlines()
    for line in ("Type=notify", "Restart=always", "User=ssc-server", "StateDirectory=ssc-server", "PrivateDevices=yes"):
        assert line in lines
    arguments = runs(SERVER, root)
    assert arguments[:4] == ["server", "run", "--config", "/etc/ssc-server.toml"]
    encoder, bundle = (root / path.removeprefix("/") for path in arguments[4:])
    assert encoder.read_bytes() == tiny_file.read_bytes()
    assert (bundle / "manifest.json").read_bytes() == (small_bundle.path / "manifest.json").read_bytes()
    assert read(ServerSettings, root / "etc/ssc-server.toml") == {
        "host": "0.0.0.0", "state": Path("/var/lib/ssc-server"),
    }  # fmt: skip


def test_again_it_renews_unit_and_bundle_and_keeps_settings_and_state(install, root):
    settings, unit = root / "etc/ssc-server.toml", root / "etc/systemd/system/ssc-server.service"
    settings.write_text('host = "127.0.0.1"\n')
    unit.write_text("")
    state = root / "var/lib/ssc-server"
    (state / "signing.key").write_text("kept")
    (state / "bundle" / "left over").touch()

    told = json.loads(install("--root", root, "--json").stdout)

    assert settings.read_text() == 'host = "127.0.0.1"\n'
    assert str(settings) in told["kept"]
    assert told["wrote"] == [str(unit)]
    assert unit.read_text()
    assert (state / "signing.key").read_text() == "kept"
    assert sorted(path.name for path in state.iterdir()) == ["bundle", "encoder.pt", "signing.key"]
    assert not (state / "bundle" / "left over").exists()


def test_what_is_installed_there_can_be_installed_from_there(root, small_bundle):
    state = root / "var/lib/ssc-server"
    done = CliRunner().invoke(
        server, ["install", str(state / "encoder.pt"), str(state / "bundle"), "--root", str(root)]
    )
    assert done.exit_code == 0, done.output
    assert (state / "bundle" / "manifest.json").read_bytes() == (small_bundle.path / "manifest.json").read_bytes()


def test_a_configuration_that_is_given_is_where_it_starts_from(install, tmp_path):
    given = tmp_path / "mine.toml"
    given.write_text('web = "8081"\nstate = "elsewhere"\n')
    assert install("--root", tmp_path / "root", "--config", given).exit_code == 0
    assert read(ServerSettings, tmp_path / "root/etc/ssc-server.toml") == {
        "host": "0.0.0.0", "web": "8081", "state": Path("/var/lib/ssc-server"),
    }  # fmt: skip


def test_print_writes_nothing(install, tmp_path):
    shown = install("--print", "--root", tmp_path / "root")
    assert "# /etc/systemd/system/ssc-server.service\n" in shown.output
    assert "# /etc/sysusers.d/ssc-server.conf\n" in shown.output
    assert not (tmp_path / "root").exists()


def test_what_is_no_encoder_or_no_bundle_is_one_line_and_nothing_is_written(tmp_path, tiny_file, small_bundle):
    root = tmp_path / "root"
    missing = ["install", str(tmp_path / "encoder.pt"), str(small_bundle.path), "--root", str(root)]
    with pytest.raises(UsageError, match=r"encoder\.pt: no such file"):
        raise CliRunner().invoke(server, missing).exception
    with pytest.raises(BundleError, match="manifest"):
        raise CliRunner().invoke(server, ["install", str(tiny_file), str(tmp_path), "--root", str(root)]).exception
    assert not root.exists()


def test_without_root_s_rights_nothing_is_written_and_the_way_out_is_named(install, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="sudo"):
        raise install().exception
