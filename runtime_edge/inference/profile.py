"""Measured block times of this device: a profile that replaces a target's estimates.

profile = measure_profile(open_bundle(Path("bundle/")), "rpi4")
Path("profile.json").write_bytes(profile.to_json())
read_profile(Path("device.json"))                   # from `ssc bench device`, which measures more
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.base.files import read_bounded
from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.device_bench import KIND, DeviceBench, Millijoules, Milliseconds
from runtime_edge.formats.strict import Name, Strict, decode
from runtime_edge.inference.contract import Array, RuntimeOptions
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.processor import is_target, processor
from runtime_edge.system import rss_mb

MAX_PROFILE_BYTES = 1 << 20
_WARM_UP = 5
_STREAM_WINDOWS = 32
"""Windows of noise before it starts over: the first one then does not continue another."""


class Profile(Strict, frozen=True, kw_only=True):
    """Median and spread of each block's time on one device, in block order."""

    format: Literal["streamsplit.profile/1"] = "streamsplit.profile/1"
    target: Name
    encoder: Name
    variant: Name
    blocks: list[Name]
    block_ms: list[Milliseconds]
    block_p90_ms: list[Milliseconds]
    runs: Annotated[int, Meta(ge=1)]
    threads: Annotated[int, Meta(ge=1)]
    memory_mb: float
    block_mj: list[Millijoules] | None = None
    """Energy above idle, by a meter; None if there was none."""
    machine: dict[str, str]
    """Where it was measured: "system", "architecture", "processor", "python", "runtime", and "front_end": what
    computed the front end there, "fft" or "graph".
    """

    @property
    def elsewhere(self) -> str:
        """The processor it was measured on if that is not the target's; empty if it is, or may be."""
        architecture, name = self.machine.get("architecture", ""), self.machine.get("processor", "")
        if not architecture or is_target(self.target, name, architecture):
            return ""
        return f"{name} ({architecture})" if name else architecture

    def to_json(self) -> bytes:
        """Indented JSON with a final newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, data: bytes, source: str) -> Profile:
        """Read and check. Raises FormatError naming the field."""
        profile = decode(data, cls, source, MAX_PROFILE_BYTES)
        if not len(profile.blocks) == len(profile.block_ms) == len(profile.block_p90_ms):
            raise FormatError(f"{source}: blocks, block_ms and block_p90_ms must be equally long")
        if profile.block_mj is not None and len(profile.block_mj) != len(profile.blocks):
            raise FormatError(f"{source}: block_mj: {len(profile.block_mj)} numbers for {len(profile.blocks)} blocks")
        return profile


def measured_python_ms(path: Path) -> float | None:
    """How fast plain Python is on the device that a file describes, ms; None if the file does not say.

    Raises FormatError.
    """
    data, source = read_bounded(path, MAX_PROFILE_BYTES), str(path)
    if decode(data, _AnyKind, source, MAX_PROFILE_BYTES).format != KIND:
        return None
    return DeviceBench.from_json(data, source).python_ms


class _AnyKind(msgspec.Struct):
    format: str = ""


def read_profile(path: Path, variant: str | None = None) -> Profile:
    """What `ssc profile` or `ssc bench device` wrote; from the latter the fastest run, or that of the given variant.

    Raises FormatError naming file and field, UsageError for a variant that was not measured.
    """
    data, source = read_bounded(path, MAX_PROFILE_BYTES), str(path)
    if decode(data, _AnyKind, source, MAX_PROFILE_BYTES).format != KIND:
        return Profile.from_json(data, source)
    bench = DeviceBench.from_json(data, source)
    try:
        row = bench.fastest(variant)
    except UsageError as exc:
        raise UsageError(f"{source}: {exc}") from None
    return Profile(
        target=bench.target,
        encoder=bench.encoder,
        variant=row.variant,
        blocks=bench.blocks,
        block_ms=row.block_ms,
        block_p90_ms=row.block_p90_ms,
        block_mj=row.block_mj,
        runs=row.runs,
        threads=row.threads,
        memory_mb=row.memory_mb,
        machine=bench.machine | {"runtime": f"{row.runtime}, {row.provider}"},
    )


def noise_windows(front_end: FrontEndInfo) -> Iterator[Array]:
    """An endless stream of noise windows, overlapping as on a device."""
    samples, hop = front_end.window_samples, front_end.hop_samples
    noise = np.random.default_rng(0).normal(0, 0.1, samples + (_STREAM_WINDOWS - 1) * hop).astype(np.float32)
    for window in itertools.cycle(range(_STREAM_WINDOWS)):
        yield noise[window * hop : window * hop + samples]


def block_times(
    prefix: Prefix, windows: Iterator[Array], runs: int, progress: Callable[[int], None] = lambda run: None
) -> npt.NDArray[np.float64]:
    """(runs, blocks) milliseconds of each block, after some warm-up windows. Raises BackendError."""
    times = np.zeros((runs, prefix.last_cut))
    for run in range(-_WARM_UP, runs):
        prefix.start(next(windows))
        for block in range(prefix.last_cut):
            started = time.perf_counter()
            prefix.advance(block + 1)
            if run >= 0:
                times[run, block] = (time.perf_counter() - started) * 1e3
        progress(max(run, 0))
    return times


def measure_profile(
    bundle: Bundle,
    target: str,
    variant: str = "onnx-fp32",
    threads: int = 1,
    runs: int = 50,
    progress: Callable[[int], None] = lambda run: None,
) -> Profile:
    """Run the whole chain `runs` times on noise, as a device would, and time every block.

    The windows overlap as on a device. Raises BundleError or BackendError.
    """
    info = bundle.manifest.info
    prefix = Prefix(bundle, variant, RuntimeOptions(threads), native=True)
    times = block_times(prefix, noise_windows(info.front_end), runs, progress)
    return Profile(
        target=target,
        encoder=info.encoder.id,
        variant=variant,
        blocks=list(info.blocks),
        block_ms=[round(statistics.median(column), 5) for column in times.T.tolist()],
        block_p90_ms=[round(float(value), 5) for value in np.percentile(times, 90, axis=0)],
        runs=runs,
        threads=threads,
        memory_mb=round(rss_mb(), 1),
        machine={
            "system": platform.platform(),
            "architecture": platform.machine(),
            "processor": processor(),
            "python": platform.python_version(),
            "runtime": prefix.backend.name,
            "front_end": prefix.front_end,
        },
    )
