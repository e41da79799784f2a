"""Fetches the aarch64 wheels that pip would choose on a Raspberry Pi."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from tools.arm.debian import Unavailable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
NEWEST_RUNTIME = ("onnxruntime==1.31.1", "numpy==2.4.6")
"""The versions that pip chooses for the extra `edge`."""
_PLATFORMS = ("manylinux2014", "manylinux_2_27", "manylinux_2_28", "manylinux_2_34")
_SOURCE_ONLY = ("nkeys==0.2.1",)
"""Pure Python packages published without a wheel, so one is made here."""
_EPOCH = "315532800"
"""1980-01-01, the first date a zip file can hold, so that a wheel made here has the same bytes every time."""
_TIMEOUT_S = 300.0


def requirements(extras: Sequence[str], python: str) -> list[str]:
    """The requirements of this project with some extras, on aarch64 with a version of Python."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    there = {"python_version": python, "platform_machine": "aarch64"}
    asked = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    wanted = [one for one in map(Requirement, asked) if one.marker is None or one.marker.evaluate(there)]
    # pip would evaluate the marker after the semicolon for the Python that runs pip.
    return [str(one).partition(";")[0].strip() for one in wanted]


def for_python(python: str) -> list[str]:
    """The pip options that choose wheels for aarch64 and a version of Python."""
    platforms = [f"--platform={name}_aarch64" for name in _PLATFORMS]
    return ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]


def make_source_only(directory: Path) -> None:
    """Make wheels of the packages that are published only as source."""
    pip("wheel", "--no-deps", "--wheel-dir", str(directory), *_SOURCE_ONLY)


def pip(command: str, *arguments: str, timeout_s: float = _TIMEOUT_S) -> None:
    """Run pip. Raises Unavailable when it cannot get a package, or not in time."""
    call = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=timeout_s, env=environment)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip {command}: no end within {timeout_s:g} s; the package index may be slow") from None
    if done.returncode:
        if "conflict" in done.stderr:
            raise RuntimeError(f"pip cannot put these together: {' '.join(arguments)}\n{done.stderr}")
        if "connection broken" in done.stderr:
            raise Unavailable(f"pip {command}: the package index cannot be reached")
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise Unavailable(f"pip {command}: {(errors or ['ERROR: no reason given'])[-1][7:]}")
