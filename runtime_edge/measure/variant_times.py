"""Measuring this device with a bundle: every variant that can run here, each in a process of its own.

    with open_meter() as (meter, why_none):
        bench = bench_device(open_bundle(Path("bundle/")), "rpi4", meter=meter)
    Path("device.json").write_bytes(bench.to_json())

A separate process shows how much memory one variant needs, and contains the crash of a runtime.
"""

from __future__ import annotations

import datetime as dt
import json
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.errors import BackendError, MissingExtra, UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.device_bench import DeviceBench, MeasuredVariant
from runtime_edge.inference.contract import Array, RuntimeOptions
from runtime_edge.inference.factory import providers_here
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.processor import processor
from runtime_edge.inference.profile import block_times, noise_windows
from runtime_edge.inference.variants import runtime_options, variants_here
from runtime_edge.measure.meters import Meter
from runtime_edge.measure.plain_python import python_ms
from runtime_edge.system import rss_mb

_REST_S = 5.0
"""How long nothing runs while the meter shows what the board uses at rest, s."""
_BLOCK_S = 1.0
"""How long a block runs over and over, s: long enough for a meter that is read ten times a second."""
_TIMEOUT_S = 600.0
"""After this long a child is ended, s."""
_STARTED = "started"


@dataclass(frozen=True)
class BenchSettings:
    """How long to measure."""

    runs: int = 50
    """Timed runs of each block."""
    rest_s: float = _REST_S
    block_s: float = _BLOCK_S
    """How long each block runs for energy, s; not used without a meter."""


@dataclass(frozen=True)
class Configuration:
    """What one child process measures."""

    variant: str
    provider: str
    threads: int

    def __str__(self) -> str:
        return f"{self.variant}, {self.provider}, {self.threads} thread(s)"


@dataclass
class _Findings:
    measured: list[MeasuredVariant] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def bench_device(
    bundle: Bundle,
    target: str,
    settings: BenchSettings | None = None,
    meter: Meter | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> DeviceBench:
    """Measure everything. Raises UsageError if the bundle was not compiled for the target, or if nothing can run."""
    settings = settings or BenchSettings()
    info = bundle.manifest.info
    if target not in info.targets:
        raise UsageError(f"--target {target}: this bundle was compiled for {', '.join(sorted(info.targets))}")
    idle_w = _rest(meter, settings.rest_s, progress) if meter is not None else None
    found = _Findings()
    for configuration in _configurations(bundle, target, found.skipped):
        progress(str(configuration))
        try:
            found.measured.append(_in_child(bundle, configuration, settings, meter, idle_w or 0.0))
        except (BackendError, MissingExtra) as exc:
            found.skipped[str(configuration)] = str(exc)[:400]
    if not found.measured:
        raise UsageError(
            f"{bundle.path}: none of its variants runs here: {'; '.join(sorted(set(found.skipped.values())))}"
        )
    return DeviceBench(
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        target=target,
        encoder=info.encoder.id,
        weights=info.encoder.weights,
        blocks=list(info.blocks),
        machine={
            "system": platform.platform(),
            "architecture": platform.machine(),
            "processor": processor(),
            "python": platform.python_version(),
        },
        python_ms=round(python_ms(), 4),
        meter=None if meter is None else meter.name,
        idle_w=None if idle_w is None else round(idle_w, 4),
        variants=found.measured,
        skipped=found.skipped,
    )


def _configurations(bundle: Bundle, target: str, skipped: dict[str, str]) -> Iterator[Configuration]:
    """Variants whose runtime is installed, on each of its providers, with one thread and with the target's number."""
    threads = sorted({1, runtime_options(bundle.manifest, target).threads})
    usable = variants_here(bundle.manifest)
    for variant, installed in usable.items():
        if not installed:
            skipped[variant] = "its runtime is not installed"
            continue
        here = providers_here(variant.partition("-")[0])
        for provider in ("cpu", "xnnpack", "coreml"):
            if provider in here:
                yield from (Configuration(variant, provider, count) for count in threads)
            else:
                skipped[f"{variant}, {provider}"] = "the runtime that is installed does not have it"


def _rest(meter: Meter, seconds: float, progress: Callable[[str], None]) -> float:
    """Power that the board uses while nothing runs, W."""
    progress(f"at rest for {seconds:g} s, by {meter.name}")
    before, began = meter.joules(), time.monotonic()
    time.sleep(seconds)
    return max(0.0, (meter.joules() - before) / (time.monotonic() - began))


def _in_child(
    bundle: Bundle, configuration: Configuration, settings: BenchSettings, meter: Meter | None, idle_w: float
) -> MeasuredVariant:
    """Measure in a child process. Raises BackendError, with the child's last message, if it fails."""
    asked = {
        "bundle": str(bundle.path),
        "configuration": vars(configuration),
        "runs": settings.runs,
        "block_s": settings.block_s if meter is not None else 0.0,
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "runtime_edge.measure.one_variant", json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    energy: list[float] = []
    overdue = threading.Timer(_TIMEOUT_S, child.kill)
    overdue.start()
    try:
        for line in child.stdout:
            # The child waits before and after each block, because the meter belongs to this process.
            if line.strip() != _STARTED:
                break
            energy.append(_block_mj(child, meter, idle_w))
        else:
            line = ""
        _, errors = child.communicate()
    finally:
        overdue.cancel()
        if child.poll() is None:
            child.kill()
            child.wait()
    if child.returncode or not line:
        last = errors.strip().splitlines()[-1:] or [f"ended with code {child.returncode}"]
        raise BackendError(f"{configuration}: {last[0]}")
    found = msgspec.json.decode(line, type=MeasuredVariant)
    return msgspec.structs.replace(found, block_mj=energy) if meter is not None else found


def _block_mj(child: subprocess.Popen[str], meter: Meter | None, idle_w: float) -> float:
    """Energy above idle of one run of a block, mJ, while the child runs it over and over."""
    assert meter is not None
    assert child.stdin is not None
    assert child.stdout is not None
    before = meter.joules()
    child.stdin.write("\n")
    child.stdin.flush()
    runs, seconds = msgspec.json.decode(child.stdout.readline(), type=tuple[int, float])
    used = meter.joules() - before
    return round(max(0.0, used - idle_w * seconds) * 1e3 / runs, 5)


def measure_variant(
    bundle: Bundle, configuration: Configuration, runs: int, repeat: Callable[[Callable[[], None]], None] | None
) -> MeasuredVariant:
    """In the child: time every block, and if energy is counted, have `repeat` run each over and over."""
    info = bundle.manifest.info
    providers = (configuration.provider,) if configuration.provider == "cpu" else (configuration.provider, "cpu")
    prefix = Prefix(bundle, configuration.variant, RuntimeOptions(configuration.threads, providers), native=True)
    windows = noise_windows(info.front_end)
    times = block_times(prefix, windows, runs)
    memory_mb = rss_mb()
    if repeat is not None:
        for block in range(len(info.blocks)):
            activation = prefix.buffers[block].copy()

            def once(block: int = block, activation: Array = activation) -> None:
                if block:
                    prefix.resume(block, activation)
                else:
                    prefix.start(next(windows))
                prefix.advance(block + 1)

            repeat(once)
    return MeasuredVariant(
        variant=configuration.variant,
        provider=configuration.provider,  # type: ignore[arg-type]
        threads=configuration.threads,
        runtime=prefix.backend.name,
        runs=runs,
        block_ms=_rounded(np.median(times, axis=0)),
        block_p90_ms=_rounded(np.percentile(times, 90, axis=0)),
        memory_mb=round(memory_mb, 1),
    )


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(float(value), 5) for value in values]
