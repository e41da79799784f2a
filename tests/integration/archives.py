"""The archive that `make device-archive` makes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make_archive(directory, *options):
    """What `make device-archive` makes; skips the test where packages cannot be had."""
    command = [sys.executable, "-m", "tools.device_archive", "-o", directory, *options]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    if "cannot be reached" in made.stderr:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    (archive,) = directory.glob("*.tar")
    return archive
