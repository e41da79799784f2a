"""What systemd itself says of the units of devices and servers."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime_edge import systemd

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def assert_valid(service, directory, version):
    """systemd finds nothing wrong with the unit that a service has under a version of systemd."""
    installed = int(subprocess.check_output(["systemctl", "--version"], text=True).split()[1].split(".")[0])
    if version > installed:
        pytest.skip(f"systemd {installed} does not know what {version} does")
    path = directory / service.file.name
    path.write_text(service.unit(systemd.own_program(), version))
    checked = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    assert service.name not in checked.stderr, checked.stderr


def assert_safe(service, root):
    """systemd rates the unit that was written below a directory as safe: 2.0 of 10 at most."""
    path = systemd.below(root, service.file)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", path]
    rated = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert rated.returncode == 0, rated.stdout[-2000:]


def runs(service, root):
    """The arguments with which the unit below a directory runs `ssc`, which must be a program here."""
    unit = systemd.below(root, service.file).read_text()
    (start,) = (line for line in unit.splitlines() if line.startswith("ExecStart="))
    program, *arguments = shlex.split(start.removeprefix("ExecStart="))
    assert Path(program).name == "ssc"
    assert os.access(program, os.X_OK)
    return arguments
