"""Counts the instructions of a program on the emulated Cortex-A72, as a measure of its speed without a real one.

    counter = InstructionCounter(machine)
    counter.count(site, "-c", "print('hello')")

QEMU's dynamically linked emulators load plugins, the static ones do not, so Debian's `qemu-user` is unpacked beside the
machine; the plugin is 50 lines of C, built by this machine's compiler.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.arm.debian import Unavailable
from tools.arm.machine import EmulatedMachine, SitePackages

_SOURCE = Path(__file__).with_name("instructions.c")
_PACKAGES = ("qemu-user", "libcapstone4", "liburing2")
_LOADER = Path("/lib64/ld-linux-x86-64.so.2")
_WINDOWS = 2, 6
_EMBED = """
import sys
from pathlib import Path
import numpy as np
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.prefix import Prefix
bundle = open_bundle(Path(sys.argv[1]))
prefix = Prefix(bundle, sys.argv[2], RuntimeOptions(threads=1))
window = np.random.default_rng(0).normal(0, 0.1, bundle.manifest.info.front_end.window_samples).astype(np.float32)
for _ in range(int(sys.argv[3])):
    prefix.embed(window)
"""


class InstructionCounter:
    """Runs programs on the emulated machine and counts instructions. Raises Unavailable if a part is missing."""

    def __init__(self, machine: EmulatedMachine) -> None:
        self._machine = machine
        if shutil.which("cc") is None or not _LOADER.exists():
            raise Unavailable("counting instructions needs a C compiler, and Linux on x86-64")
        self._emulator = machine.cached("qemu-user", _PACKAGES, self._unpack)
        self._plugin = machine.cached("plugin", (_SOURCE.read_text(),), self._compile) / "instructions.so"

    def count(self, site: SitePackages, *arguments: object) -> int:
        """All instructions of Python on the emulated machine, run with these arguments."""
        packages = self._machine.install(site)
        with tempfile.TemporaryDirectory() as folder:
            counted = Path(folder) / "count"
            _, *command = self._machine.command(*arguments)
            plugin = ["-plugin", str(self._plugin), "-d", "plugin", "-D", str(counted)]
            libraries = self._emulator / "usr" / "lib" / "x86_64-linux-gnu"
            emulator = [str(_LOADER), "--library-path", str(libraries), str(self._emulator / "usr/bin/qemu-aarch64")]
            subprocess.run([*emulator, *plugin, *command], env=self._machine.environment(packages), check=True)
            return int(counted.read_text())

    def window(self, site: SitePackages, bundle: Path, variant: str) -> float:
        """Instructions that each further window of a bundle takes in one variant, on one thread."""
        # The first run writes bytecode files, which later runs read.
        _, few, more = (self.count(site, "-c", _EMBED, bundle, variant, windows) for windows in (1, *_WINDOWS))
        return (more - few) / (_WINDOWS[1] - _WINDOWS[0])

    def _unpack(self, directory: Path) -> None:
        with self._machine.downloaded(list(_PACKAGES)) as packages:
            for package in packages:
                subprocess.run(["dpkg-deb", "-x", package, directory], check=True)

    def _compile(self, directory: Path) -> None:
        directory.mkdir()
        command = ["cc", "-shared", "-fPIC", "-O2", str(_SOURCE), "-o", str(directory / "instructions.so")]
        subprocess.run(command, check=True)
