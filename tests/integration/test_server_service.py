"""A server as systemd runs it: the unit's own command, and what it tells the manager."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import harness
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
SSC = Path(sys.executable).with_name("ssc")


def test_an_installed_server_says_that_it_is_ready_alive_and_ending(toy, manager, start, tmp_path, monkeypatch):
    root, port = tmp_path / "root", harness.free_port()
    (tmp_path / "mine.toml").write_text(f'host = "127.0.0.1"\nport = {port}\ntraining = false\n')
    files = [toy / "encoder.pt", toy / "bundle", "--config", tmp_path / "mine.toml", "--root", root]
    subprocess.run([SSC, "server", "install", *files], check=True, capture_output=True)
    unit = (root / "etc/systemd/system/ssc-server.service").read_text()
    (line,) = (one for one in unit.splitlines() if one.startswith("ExecStart="))
    program, *arguments = [
        str(root) + word if word.startswith(("/etc/", "/var/")) else word
        for word in shlex.split(line.removeprefix("ExecStart="))
    ]
    for name, value in manager.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSC_SERVER_STATE", str(root / "var/lib/ssc-server"))  # the unit's is /var/lib/ssc-server itself

    server = harness.Process(tmp_path / "server.log", *arguments, script=Path(program))
    try:
        harness.until(lambda: "READY=1" in manager.heard, "READY=1")
        heard = len(manager.heard)
        harness.until(lambda: "WATCHDOG=1" in manager.heard[heard:], "a sign of life")
        harness.until(lambda: any("0 devices" in one for one in manager.heard), "a status")
        assert os.access(root / "var/lib/ssc-server/signing.key", os.R_OK)
        server.signal(signal.SIGTERM)
        server.finish()
    finally:
        server.signal(signal.SIGKILL)
    assert manager.heard[-1] == "STOPPING=1"
