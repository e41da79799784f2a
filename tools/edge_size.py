"""Measures the size of a device's environment with du: each extra is installed into its own environment.

    python -m tools.edge_size [--keep DIRECTORY] [EXTRA ...]

An environment is made as on a device: without pip, and with nothing compiled ahead. Bytecode that Python compiles while
the device runs counts too, so each environment first imports everything that embedding a window needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("edge", "edge-tflite", "edge-tflite-runtime")
TFLITE_RUNTIME_PYTHON = (3, 11)
"""The newest Python that has a tflite-runtime."""
_RUNTIMES = {"edge": "onnxruntime", "edge-tflite": "ai_edge_litert.interpreter"}


def make_environment(extra: str, directory: Path) -> Path:
    """Install the project with one extra; returns the environment's Python."""
    python = directory / "bin" / "python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", "--without-pip", str(directory))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
        _run(*pip, f"{ROOT}[{extra}]")
        runtime = _RUNTIMES.get(extra, "tflite_runtime.interpreter")
        _run(
            str(python),
            "-c",
            f"import runtime_edge.cli.edge_commands, runtime_edge.device.device, soundfile, soxr, {runtime}",
        )
    return python


def installed_mb(python: Path) -> float:
    """Disk used by an environment's site-packages, in the MB of `du -m` (2**20 bytes)."""
    return _du_mb(_site_packages(python))[0][1]


def torch_mb() -> float:
    """Disk used by torch alone, as installed here, in the same unit."""
    import torch

    return _du_mb(Path(torch.__file__).parent)[0][1]


def largest(python: Path, count: int = 8) -> list[tuple[str, float]]:
    """The heaviest entries of an environment's site-packages, with their MB."""
    return sorted(_du_mb(*_site_packages(python).iterdir()), key=lambda item: -item[1])[:count]


def available(extra: str) -> bool:
    """Whether the extra supports this Python."""
    return extra != "edge-tflite-runtime" or sys.version_info[:2] <= TFLITE_RUNTIME_PYTHON


def _site_packages(python: Path) -> Path:
    return Path(_run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())


def _du_mb(*paths: Path) -> list[tuple[str, float]]:
    lines = [line.split("\t") for line in _run("du", "-sk", *map(str, paths)).splitlines()]
    return [(Path(name).name, int(kilobytes) / 1024) for kilobytes, name in lines]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()[-800:]}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the size of each extra."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", default=[extra for extra in EXTRAS if available(extra)])
    parser.add_argument("--keep", type=Path, help="make the environments here and leave them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ssc-size-") as temporary:
        root = options.keep or Path(temporary)
        pythons = {extra: make_environment(extra, root / extra) for extra in options.extras}
        sizes = {extra: round(installed_mb(python), 1) for extra, python in pythons.items()}
        if options.json:
            print(json.dumps({**sizes, "torch": round(torch_mb(), 1)}))
            return
        for extra, python in pythons.items():
            heaviest = ", ".join(f"{name} {mb:.0f}" for name, mb in largest(python))
            print(f"{extra:22} {sizes[extra]:7.1f} MB  ({heaviest})")
        print(f"{'torch alone':22} {torch_mb():7.1f} MB")


if __name__ == "__main__":
    main()
