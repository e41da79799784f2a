"""A server's install: its modules and commands load where demo, lab and harness cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

CODE = """
import importlib, pathlib, sys
import runtime_server
from runtime_server.cli.registry import COMMANDS

ABOVE = ("demo", "lab", "harness")

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "matplotlib" or name.split(".")[:2] in [["runtime_server", room] for room in ABOVE]:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Refusing())
root = pathlib.Path(runtime_server.__file__).parent
paths = [path.relative_to(root.parent) for path in root.rglob("*.py")]
for path in sorted(paths):
    if path.parts[1] not in ABOVE and path.name not in ("__init__.py", "__main__.py"):
        importlib.import_module(".".join(path.with_suffix("").parts))
print(len(COMMANDS))
"""


def test_a_server_needs_neither_demo_nor_lab_nor_what_draws() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 4
