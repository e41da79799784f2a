"""Checks the device runtime on an emulated Raspberry Pi 4: the library call, `ssc edge run`, `ssc doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.arm.machine import CPU, REPOSITORY, EmulatedMachine, SitePackages
from tools.arm.sample import Sample, make_sample
from tools.arm.streaming import MAX_WINDOWS_PER_CUT, Streamed, serve, stream
from tools.arm.wheels import NEWEST_RUNTIME

_NUMPY_1 = "numpy==1.26.4"
NEWEST = "onnxruntime-newest"
SITES = (
    SitePackages("onnxruntime", "onnx", "edge", ("onnxruntime==1.23.2", NEWEST_RUNTIME[1])),
    SitePackages(NEWEST, "onnx", "edge", NEWEST_RUNTIME),
    SitePackages("tflite-runtime", "tflite", "edge-tflite-runtime", ("tflite-runtime==2.14.0", _NUMPY_1)),
)
"""The second is the one that pip chooses; the loop is the same for both, so only the library call is run with it."""
MAX_ERROR = 1e-4
_OURS = ("models", "runtime_edge", "runtime_server", "streamsplit_compile")
_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Embedded:
    """One variant's embeddings of a recording, on the emulated machine compared with this one."""

    runtime: str
    variant: str
    windows: int
    max_error: float
    cosine_to_fp32: tuple[float, float]
    """Medians on this machine and on the emulated one."""
    rss_mb: float
    """The emulator's memory included."""
    window_s: float

    @property
    def holds(self) -> bool:
        """Whether it passes. Only float32 is judged: int8 kernels round and saturate differently on each processor."""
        return self.max_error <= MAX_ERROR or not self.variant.endswith("fp32")


@dataclass
class CheckResult:
    """The results of all checks."""

    cpu: str = CPU
    installed_mb: dict[str, float] = field(default_factory=dict)
    """Disk use of a device's site-packages, by site."""
    embedded: list[Embedded] = field(default_factory=list)
    streamed: list[Streamed] = field(default_factory=list)
    doctor: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Findings of `ssc doctor`, by site."""

    @property
    def failures(self) -> list[str]:
        """The checks that failed, one line each."""
        rows: list[Embedded | Streamed] = [*self.embedded, *self.streamed]
        problems = [
            f"ssc doctor, {site}: {finding['what']}: {finding['detail']}"
            for site, found in self.doctor.items()
            for finding in found
            if finding["state"] == "problem"
        ]
        return [str(row) for row in rows if not row.holds] + problems


def check(
    machine: EmulatedMachine,
    sites: Sequence[SitePackages],
    recordings: Path | None,
    directory: Path,
    say: Callable[[str], None],
) -> CheckResult:
    """Run every check for some sites, in a scratch directory. Raises Unavailable."""
    packages = {site: machine.install(site) for site in sites}
    outcome = CheckResult()
    say("compiling the bundle: onnx and tflite, fp32 and int8")
    sample = make_sample(directory, recordings, MAX_WINDOWS_PER_CUT)
    for site in sites:
        say(f"{site.runtime} on {CPU}: library call, ssc doctor")
        outcome.embedded += embed(machine, site, packages[site], sample, directory)
        outcome.doctor[site.name] = examine(machine, packages[site], sample)
        outcome.installed_mb[site.name] = sum(map(_disk_mb, [packages[site], *(REPOSITORY / name for name in _OURS)]))
    with serve(directory, sample) as server:
        for site in (site for site in sites if site.name != NEWEST):
            for encoding in ("int8", "float16"):
                say(f"{site.runtime} on {CPU}: ssc edge run, {encoding}")
                outcome.streamed.append(stream(machine, site, packages[site], encoding, sample, server, directory))
    return outcome


def embed(
    machine: EmulatedMachine, site: SitePackages, packages: Path, sample: Sample, directory: Path
) -> list[Embedded]:
    """Run the library call with every variant of the site's format, on both machines."""
    exact, small = variants = (f"{site.format}-fp32", f"{site.format}-int8")
    script = [Path(__file__).with_name("embed.py"), sample.bundle.path, sample.recording, ",".join(variants)]
    _output([sys.executable, *script, directory / "here.npz"])
    said = json.loads(_output(machine.command(*script, directory / "there.npz"), machine.environment(packages)))
    if said["machine"] != "aarch64":
        raise RuntimeError(f"{site.runtime} ran on {said['machine']}")
    here, there = (dict(np.load(directory / name)) for name in ("here.npz", "there.npz"))
    return [
        Embedded(
            runtime=site.runtime,
            variant=variant,
            windows=len(there[variant]),
            max_error=float(np.abs(here[variant] - there[variant]).max()),
            cosine_to_fp32=(_cosine(here[variant], here[exact]), _cosine(there[variant], here[exact])),
            rss_mb=said["rss_mb"],
            window_s=said["window_s"][variant],
        )
        for variant in (exact, small)
    ]


def examine(machine: EmulatedMachine, packages: Path, sample: Sample) -> list[dict[str, str]]:
    """The findings of `ssc doctor` on the emulated machine, with the bundle."""
    command = machine.ssc("doctor", sample.bundle.path, "--json")
    found: list[dict[str, str]] = json.loads(_output(command, machine.environment(packages), allowed=(0, 1)))
    return found


def as_json(outcome: CheckResult) -> dict[str, Any]:
    """The results as JSON for programs."""
    return asdict(outcome) | {"failures": outcome.failures}


def _cosine(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Median cosine over windows; embeddings have unit norm."""
    return float(np.median((found * expected).sum(1)))


def _disk_mb(directory: Path) -> float:
    """Disk use as `du` counts it, in units of 1e6 bytes."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*")) / 1e6


def _output(command: list[Any], environment: dict[str, str] | None = None, allowed: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if done.returncode not in allowed:
        raise RuntimeError(f"{command[0]}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout
