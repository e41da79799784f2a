"""Every shell script of the project is one that shellcheck has nothing against."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted([*(ROOT / "deploy").glob("*.sh"), *(ROOT / "tools").rglob("*.sh")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_has_nothing_against_it(script):
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, "--shell=sh", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
