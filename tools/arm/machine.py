"""An emulated Raspberry Pi 4: Debian's arm64 Python and aarch64 wheels, run by QEMU's user-mode emulation.

Everything is in a cache directory: nothing is installed on this machine, its own package manager is not affected, and
no root is needed. apt checks Debian's signatures under a private configuration, pip the index's hashes. Files in the
cache are not fetched again.

    machine = EmulatedMachine(Path(".cache/arm"))
    site = machine.install(SitePackages("edge", "onnx", "edge", wheels.NEWEST_RUNTIME))
    command = machine.command("-c", "import platform; print(platform.machine())")
    subprocess.run(command, env=machine.environment(site))
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import DISTRIBUTION
from tools.arm import wheels
from tools.arm.debian import BOOKWORM, CPUINFO, MIRROR, DebianCache
from tools.arm.wheels import REPOSITORY

CPU = "cortex-a72"
_PYTHON = "3.11"
_PACKAGES = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6",
             "libbz2-1.0", "libcrypt1", "libexpat1", "libffi8", "liblzma5", "libsqlite3-0", "libssl3", "libuuid1",
             "zlib1g")  # fmt: skip


@dataclass(frozen=True)
class SitePackages:
    """The packages of one device, as pip installs them for an extra of this project."""

    name: str
    format: str
    """Format of the blocks that its inference runtime runs: onnx or tflite."""
    extra: str
    pins: tuple[str, ...]
    """Exact versions of the inference runtime and of numpy."""

    @property
    def runtime(self) -> str:
        """Name and version of the inference runtime."""
        return self.pins[0].replace("==", " ")

    def requirements(self) -> list[str]:
        """The extra's requirements on the emulated machine, then the pins."""
        return [*wheels.requirements([self.extra], _PYTHON), *self.pins]


class EmulatedMachine(DebianCache):
    """The emulated machine. The constructor fetches files missing in the cache; raises Unavailable if it cannot."""

    def __init__(self, cache: Path, mirror: str = MIRROR, say: Callable[[str], None] = print) -> None:
        super().__init__(cache, mirror, say)
        self._root = self.cached("root", (BOOKWORM, *_PACKAGES, CPUINFO), self._unpack_root)
        self._qemu = self.qemu()

    def install(self, site: SitePackages) -> Path:
        """Install a site's packages if necessary; returns their directory."""
        wanted = (*site.requirements(), wheels.CONSTRAINTS.read_text())

        def fill(directory: Path) -> None:
            self.say(f"fetching aarch64 wheels of the extra {site.extra} with {', '.join(site.pins)}")
            with tempfile.TemporaryDirectory() as made:
                wheels.make_source_only(Path(made))
                given = ["--find-links", made, "--constraint", str(wheels.CONSTRAINTS), *site.requirements()]
                wheels.pip("install", "--target", str(directory), *wheels.for_python(_PYTHON), *given)

        return self.cached(f"site-{site.name}", wanted, fill)

    def command(self, *arguments: object) -> list[str]:
        """The command line that runs the emulated machine's Python with some arguments."""
        python = self._root / "usr" / "bin" / f"python{_PYTHON}"
        return [str(self._qemu), "-cpu", CPU, "-L", str(self._root), str(python), *map(str, arguments)]

    def ssc(self, *arguments: object) -> list[str]:
        """The command line that runs `ssc`, by its console entry point, on the emulated machine.

        It is given a Python that it can start as a separate process, as for a bundle's self-test: this machine cannot
        run the emulated one directly.
        """
        python = self.directory / "python"
        write_atomic(python, f'#!/bin/sh\nexec {shlex.join(self.command())} "$@"\n'.encode(), 0o755)
        entry = importlib.metadata.distribution(DISTRIBUTION).entry_points["ssc"]
        code = f"import sys; sys.executable = {str(python)!r}; from {entry.module} import {entry.attr}; {entry.attr}()"
        return self.command("-c", code, *arguments)

    def environment(self, site: Path) -> dict[str, str]:
        """Environment variables of an emulated process: the site's packages and this checkout's sources."""
        return {
            "PATH": os.defpath,
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "PYTHONPATH": f"{REPOSITORY}:{site}",
            "PYTHONNOUSERSITE": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def _unpack_root(self, directory: Path) -> None:
        self.say(f"fetching {len(_PACKAGES)} arm64 packages of Debian {BOOKWORM}: Python {_PYTHON} and its libraries")
        with self.downloaded([f"{package}:arm64" for package in _PACKAGES]) as packages:
            for package in packages:
                subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
        (directory / "proc").mkdir()
        (directory / "proc" / "cpuinfo").write_text(CPUINFO)
