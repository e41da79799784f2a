"""Measurements of a bundle on a board, made by `ssc bench device`; they replace predictions.

bench = DeviceBench.from_json(data, "device.json")
bench.fastest().block_ms
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.strict import Name, Strict, decode

MAX_DEVICE_BENCH_BYTES = 1 << 20
KIND = "streamsplit.device-bench/1"

Milliseconds = Annotated[float, Meta(ge=0, le=1e7)]
Millijoules = Annotated[float, Meta(ge=0, le=1e9)]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]


class MeasuredVariant(Strict, frozen=True, kw_only=True):
    """One variant on one provider of a runtime, with a number of threads, in a process of its own."""

    variant: Name
    provider: Literal["cpu", "xnnpack", "coreml"]
    threads: Annotated[int, Meta(ge=1, le=256)]
    runtime: Name
    runs: Annotated[int, Meta(ge=1, le=1_000_000)]
    block_ms: Annotated[list[Milliseconds], Meta(max_length=4096)]
    """Medians, in block order."""
    block_p90_ms: Annotated[list[Milliseconds], Meta(max_length=4096)]
    block_mj: Annotated[list[Millijoules], Meta(max_length=4096)] | None = None
    """Energy above idle; None without a meter."""
    memory_mb: Annotated[float, Meta(ge=0, le=1e7)]
    """Resident memory of the process with all blocks loaded and run, MB (1e6 bytes)."""

    @property
    def whole_ms(self) -> float:
        """Time of all blocks."""
        return sum(self.block_ms)


class DeviceBench(Strict, frozen=True, kw_only=True):
    """The whole file. An inconsistent one is refused, naming the field."""

    format: Literal["streamsplit.device-bench/1"] = "streamsplit.device-bench/1"
    created: Name
    target: Name
    """The target that this device is."""
    encoder: Name
    weights: Digest
    """Digest of the weights that were measured."""
    blocks: Annotated[list[Name], Meta(min_length=1, max_length=4096)]
    machine: Annotated[dict[Name, Annotated[str, Meta(max_length=400)]], Meta(max_length=32)]
    """As in a profile: "system", "architecture", "processor", "python"."""
    python_ms: Annotated[float, Meta(gt=0, le=1e6)]
    """Time of a fixed piece of Python: how fast everything that is not a block runs here."""
    meter: Name | None = None
    """The meter that counted the energy; None without one."""
    idle_w: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    """Power by the meter, before anything ran."""
    variants: Annotated[list[MeasuredVariant], Meta(min_length=1, max_length=256)]
    skipped: Annotated[dict[Name, Annotated[str, Meta(max_length=400)]], Meta(max_length=256)]
    """What could not be measured here, and why."""

    def to_json(self) -> bytes:
        """Indented JSON with a final newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, data: bytes, source: str) -> DeviceBench:
        """Read and check. Raises FormatError naming the field."""
        found = decode(data, cls, source, MAX_DEVICE_BENCH_BYTES)
        for problem in _problems(found):
            raise FormatError(f"{source}: {problem}")
        return found

    def fastest(self, variant: str | None = None) -> MeasuredVariant:
        """The fastest run of one variant; without one, of those in float32, which change no embedding, if any.

        Raises UsageError naming the variants that were measured.
        """
        known = sorted({one.variant for one in self.variants})
        if variant is not None and variant not in known:
            raise UsageError(f"no variant {variant!r} was measured, only {', '.join(known)}")
        wanted = [variant] if variant else [name for name in known if name.endswith("-fp32")] or known
        return min((one for one in self.variants if one.variant in wanted), key=lambda one: one.whole_ms)


def _problems(found: DeviceBench) -> Iterator[str]:
    if len(set(found.blocks)) != len(found.blocks):
        yield "blocks: a name appears twice"
    seen = set()
    for place, one in enumerate(found.variants):
        for name in ("block_ms", "block_p90_ms", "block_mj"):
            values = getattr(one, name)
            if values is not None and len(values) != len(found.blocks):
                yield f"variants[{place}].{name}: {len(values)} numbers for {len(found.blocks)} blocks"
        if (one.block_mj is None) != (found.meter is None):
            yield f"variants[{place}].block_mj: energy needs a meter, and a meter gives energy"
        seen.add((one.variant, one.provider, one.threads))
    if len(seen) != len(found.variants):
        yield "variants: the same variant, provider and threads twice"
    if (found.idle_w is None) != (found.meter is None):
        yield "idle_w: it is the meter's, so neither stands alone"
