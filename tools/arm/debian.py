"""Fetches Debian's packages and QEMU into a cache directory: nothing is installed on this machine, no root is needed.

apt checks Debian's signatures under a private configuration, and this machine's own package manager is not affected.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
BOOKWORM = "bookworm"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_QEMU, _QEMU_PACKAGE = "qemu-aarch64-static", "qemu-user-static"
_TIMEOUT_S = 300.0

_APT = """\
APT::Architecture "{host}";
APT::Architectures {{ "{host}"; "arm64"; }};
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
Dir::Etc::sourcelist "{state}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
APT::Update::Error-Mode "any";
"""

# An older QEMU shows programs the real machine's /proc/cpuinfo. On x86 onnxruntime then finds no processor, and from
# 1.28 on it follows a null pointer at import. With the /proc/cpuinfo of a Raspberry Pi 4, all versions load.
_CORE = """\
processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
CPUINFO = "".join(_CORE.format(core=core) for core in range(4)) + "Model\t\t: Raspberry Pi 4 Model B (emulated)\n"
"""The /proc/cpuinfo of a Raspberry Pi 4."""


class Unavailable(Exception):
    """The emulated machine is not available here; the message is one line that says why."""


class DebianCache:
    """Files fetched from Debian and kept. Raises Unavailable if they cannot be fetched."""

    def __init__(self, cache: Path, mirror: str = MIRROR, say: Callable[[str], None] = print) -> None:
        self.directory, self.mirror, self.say = cache.resolve(), mirror, say
        if platform.system() != "Linux":
            raise Unavailable(f"QEMU's user-mode emulation needs Linux, this is {platform.system()}")
        self.directory.mkdir(parents=True, exist_ok=True)

    def qemu(self) -> Path:
        """The static emulator: this machine's own, or Debian's."""
        on_path = shutil.which(_QEMU)
        return Path(on_path) if on_path else self.cached("qemu", (BOOKWORM,), self._unpack_qemu) / _QEMU

    def cached(self, name: str, inputs: tuple[str, ...], fill: Callable[[Path], None]) -> Path:
        """The directory that `fill` made from these inputs, now or earlier; one made from other inputs is removed.

        Of several processes one fills it, and the others wait. `fill` must not call this method.
        """
        digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:12]
        directory = self.directory / f"{name}-{digest}"
        with self._locked():
            if not directory.exists():
                with tempfile.TemporaryDirectory(dir=self.directory, prefix="new-") as made:
                    fill(Path(made) / "filled")
                    for stale in self.directory.glob(f"{name}-" + "[0-9a-f]" * 12):
                        shutil.rmtree(stale)
                    (Path(made) / "filled").rename(directory)
        return directory

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the cache directory, which has no other file for it. It ends with the process."""
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _unpack_qemu(self, directory: Path) -> None:
        self.say(f"fetching {_QEMU} (Debian's {_QEMU_PACKAGE}; about 63 MB)")
        with self.downloaded([_QEMU_PACKAGE]) as (package,):
            directory.mkdir()
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacked:
                path = f"./usr/bin/{_QEMU}"
                subprocess.run(
                    ["tar", "-x", "-C", directory, "--strip-components=3", path], stdin=unpacked.stdout, check=True
                )

    @contextmanager
    def downloaded(self, packages: Sequence[str]) -> Iterator[list[Path]]:
        """Debian packages as files that exist while the context lasts."""
        with self._apt(BOOKWORM) as (state, environment):
            _output(["apt-get", "-q", "download", *packages], state, environment)
            yield sorted(state.glob("*.deb"))

    @contextmanager
    def downloaded_with_dependencies(self, packages: Sequence[str], suite: str) -> Iterator[list[Path]]:
        """arm64 packages with all their dependencies, for a system that has nothing yet."""
        with self._apt(suite, "arm64") as (state, environment):
            install = ["install", "--yes", "--download-only", "--no-install-recommends"]
            _output(["apt-get", "-q", *install, *packages], state, environment)
            yield sorted((state / "cache" / "archives").glob("*.deb"))

    @contextmanager
    def _apt(self, suite: str, architecture: str | None = None) -> Iterator[tuple[Path, dict[str, str]]]:
        """A directory with a suite's package lists, for this architecture or another, and apt's environment for it."""
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise Unavailable(f"{tool} is missing: Debian packages cannot be fetched here")
        if not _KEYRING.exists():
            raise Unavailable(f"{_KEYRING} is missing: install debian-archive-keyring")
        host = architecture or _output(["dpkg", "--print-architecture"]).strip()
        with tempfile.TemporaryDirectory(dir=self.directory, prefix="apt-") as name:
            state = Path(name)
            for folder in (state / "lists" / "partial", state / "cache" / "archives" / "partial"):
                folder.mkdir(parents=True)
            (state / "status").touch()
            (state / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {self.mirror} {suite} main\n")
            (state / "apt.conf").write_text(_APT.format(host=host, state=state))
            environment = {**os.environ, "APT_CONFIG": str(state / "apt.conf")}
            _output(["apt-get", "-q", "update"], state, environment)
            yield state, environment


def _output(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]}: no answer within {_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("E:")]
        raise Unavailable(f"{command[0]}: {(errors or lines or ['failed'])[0]}")
    return done.stdout
