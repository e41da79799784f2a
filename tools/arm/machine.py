"""An emulated Raspberry Pi 4: Debian's arm64 Python and aarch64 wheels, run by QEMU's user-mode emulation.

Everything lies in a cache directory: nothing is installed on this machine, its own package manager's state stays as it
is, and no root is needed. apt checks Debian's signatures under a private configuration, pip the index's hashes. What is
in the cache is not fetched again.

machine = Machine(Path(".cache/arm"))
subprocess.run(machine.command("-c", "import platform; print(platform.machine())"), env=machine.environment(site))
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import DISTRIBUTION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CPU = "cortex-a72"
REPOSITORY = Path(__file__).resolve().parents[2]
MIRROR = "http://deb.debian.org/debian"
_SUITE = "bookworm"
_PYTHON = "3.11"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_QEMU, _QEMU_PACKAGE = "qemu-aarch64-static", "qemu-user-static"
_PACKAGES = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6",
             "libbz2-1.0", "libcrypt1", "libexpat1", "libffi8", "liblzma5", "libsqlite3-0", "libssl3", "libuuid1",
             "zlib1g")  # fmt: skip
_FOR_THE_MACHINE = ["--only-binary=:all:", "--implementation=cp", f"--python-version={_PYTHON}"] + [
    f"--platform={name}_aarch64" for name in ("manylinux2014", "manylinux_2_27", "manylinux_2_28", "manylinux_2_34")
]
_SOURCE_ONLY = ("nkeys==0.2.1",)
"""Pure Python and published without a wheel, so one is made here."""
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
# 1.28 on it follows a null pointer at import; given a Raspberry Pi 4's, all versions load.
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
_MODEL = "Model\t\t: Raspberry Pi 4 Model B (emulated)\n"


class Unavailable(Exception):
    """The emulated machine cannot be had here; the message is one line that says why."""


@dataclass(frozen=True)
class SitePackages:
    """The packages of one device, as pip installs them for an extra of this project."""

    name: str
    format: str
    """Of the blocks its inference runtime runs: onnx or tflite."""
    extra: str
    pins: tuple[str, ...]
    """Exact versions of the inference runtime and of numpy."""

    @property
    def runtime(self) -> str:
        """Name and version of the inference runtime."""
        return self.pins[0].replace("==", " ")

    def requirements(self) -> list[str]:
        """Requirements of the extra as they hold on the emulated machine, then the pins."""
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        there = {"python_version": _PYTHON, "platform_machine": "aarch64"}
        found = map(Requirement, project["dependencies"] + project["optional-dependencies"][self.extra])
        wanted = [one for one in found if one.marker is None or one.marker.evaluate(there)]
        # pip would evaluate what follows the semicolon for the Python that runs it.
        return [str(one).partition(";")[0].strip() for one in wanted] + list(self.pins)


class EmulatedMachine:
    """The emulated machine. Making one fetches what the cache lacks; raises Unavailable when that cannot be done."""

    def __init__(self, cache: Path, mirror: str = MIRROR, say: Callable[[str], None] = print) -> None:
        self._cache, self._mirror, self._say = cache.resolve(), mirror, say
        if platform.system() != "Linux":
            raise Unavailable(f"QEMU's user-mode emulation needs Linux, this is {platform.system()}")
        self._cache.mkdir(parents=True, exist_ok=True)
        on_path = shutil.which(_QEMU)
        self._root = self.cached("root", (_SUITE, *_PACKAGES, _CORE, _MODEL), self._unpack_root)
        self._qemu = Path(on_path) if on_path else self.cached("qemu", (_SUITE,), self._unpack_qemu) / _QEMU

    def install(self, site: SitePackages) -> Path:
        """The directory with a site's packages."""
        constraints = Path(__file__).with_name("constraints.txt")
        wanted = (*site.requirements(), constraints.read_text())

        def fill(directory: Path) -> None:
            self._say(f"fetching aarch64 wheels of the extra {site.extra} with {', '.join(site.pins)}")
            with tempfile.TemporaryDirectory() as wheels:
                _pip("wheel", "--no-deps", "--wheel-dir", wheels, *_SOURCE_ONLY)
                given = ["--find-links", wheels, "--constraint", str(constraints), *site.requirements()]
                _pip("install", "--target", str(directory), *_FOR_THE_MACHINE, *given)

        return self.cached(f"site-{site.name}", wanted, fill)

    def command(self, *arguments: object) -> list[str]:
        """The command line that runs the emulated machine's Python with some arguments."""
        python = self._root / "usr" / "bin" / f"python{_PYTHON}"
        return [str(self._qemu), "-cpu", CPU, "-L", str(self._root), str(python), *map(str, arguments)]

    def ssc(self, *arguments: object) -> list[str]:
        """The command line that runs `ssc`, by its console entry point, on the emulated machine.

        It finds a Python that it can start as a process of its own, as it does for a bundle's self-test: the emulated
        one is no program of this machine.
        """
        python = self._cache / "python"
        write_atomic(python, f'#!/bin/sh\nexec {shlex.join(self.command())} "$@"\n'.encode(), 0o755)
        entry = importlib.metadata.distribution(DISTRIBUTION).entry_points["ssc"]
        code = f"import sys; sys.executable = {str(python)!r}; from {entry.module} import {entry.attr}; {entry.attr}()"
        return self.command("-c", code, *arguments)

    def environment(self, site: Path) -> dict[str, str]:
        """Variables of a process there: the site's packages and this checkout's sources."""
        return {
            "PATH": os.defpath,
            "HOME": str(self._cache),
            "LANG": "C.UTF-8",
            "PYTHONPATH": f"{REPOSITORY}:{site}",
            "PYTHONNOUSERSITE": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def cached(self, name: str, inputs: tuple[str, ...], fill: Callable[[Path], None]) -> Path:
        """The directory `fill` made of these inputs, now or earlier; what other inputs made goes."""
        digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:12]
        directory = self._cache / f"{name}-{digest}"
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=self._cache, prefix="new-") as made:
                fill(Path(made) / "filled")
                for stale in self._cache.glob(f"{name}-" + "[0-9a-f]" * 12):
                    shutil.rmtree(stale)
                (Path(made) / "filled").rename(directory)
        return directory

    def _unpack_root(self, directory: Path) -> None:
        self._say(f"fetching {len(_PACKAGES)} arm64 packages of Debian {_SUITE}: Python {_PYTHON} and its libraries")
        with self.downloaded([f"{package}:arm64" for package in _PACKAGES]) as packages:
            for package in packages:
                subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
        (directory / "proc").mkdir()
        cores = "".join(_CORE.format(core=core) for core in range(4))
        (directory / "proc" / "cpuinfo").write_text(cores + _MODEL)

    def _unpack_qemu(self, directory: Path) -> None:
        self._say(f"fetching {_QEMU} (Debian's {_QEMU_PACKAGE}; about 63 MB)")
        with self.downloaded([_QEMU_PACKAGE]) as (package,):
            directory.mkdir()
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacked:
                path = f"./usr/bin/{_QEMU}"
                subprocess.run(
                    ["tar", "-x", "-C", directory, "--strip-components=3", path], stdin=unpacked.stdout, check=True
                )

    @contextmanager
    def downloaded(self, packages: list[str]) -> Iterator[list[Path]]:
        """Debian packages as files that lie there while the context lasts."""
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise Unavailable(f"{tool} is missing: Debian packages cannot be fetched here")
        if not _KEYRING.exists():
            raise Unavailable(f"{_KEYRING} is missing: install debian-archive-keyring")
        with tempfile.TemporaryDirectory(dir=self._cache, prefix="apt-") as name:
            state, files = Path(name), Path(name) / "packages"
            for folder in (state / "lists" / "partial", state / "cache" / "archives" / "partial", files):
                folder.mkdir(parents=True)
            host = _output(["dpkg", "--print-architecture"]).strip()
            (state / "status").touch()
            (state / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {self._mirror} {_SUITE} main\n")
            (state / "apt.conf").write_text(_APT.format(host=host, state=state))
            for command in (["update"], ["download", *packages]):
                _output(["apt-get", "-q", *command], files, {**os.environ, "APT_CONFIG": str(state / "apt.conf")})
            yield sorted(files.glob("*.deb"))


def _pip(command: str, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*pip, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        if "conflict" in done.stderr:
            raise RuntimeError(f"pip cannot put these together: {' '.join(arguments)}\n{done.stderr}")
        if "connection broken" in done.stderr:
            raise Unavailable(f"pip {command}: the package index cannot be reached")
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise Unavailable(f"pip {command}: {(errors or ['ERROR: no reason given'])[-1][7:]}")


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
