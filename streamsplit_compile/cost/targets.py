"""Targets: the speed, memory and power of a kind of device, as a TOML file of figures that each name their source.

The files are in `streamsplit_compile/cost/targets/`; a user's own file has the same fields. Rates are those that an
inference runtime achieves with `threads` threads on the first of `providers`, not peaks from a datasheet.

    target = load_target("rpi4")        # or load_target("my-board.toml")
    target.gmacs_per_s("fp32")
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from runtime_edge.base.files import read_bounded
from runtime_edge.errors import UsageError
from runtime_edge.formats.strict import Strict, decode
from streamsplit_compile.cost.figure_files import figure_file, names_in

MAX_TARGET_BYTES = 64 << 10
DIRECTORY = Path(__file__).with_name("targets")


class Figure(Strict, frozen=True):
    """A number that is zero or more, with its source."""

    value: Annotated[float, Meta(ge=0, le=1e9)]
    source: Annotated[str, Meta(min_length=1, max_length=400)]
    estimate: bool
    """False only if it was measured on the device itself (`ssc profile`)."""


class Rate(Figure, frozen=True):
    """A number that is used as a divisor, so it must be above zero."""

    value: Annotated[float, Meta(gt=0, le=1e9)]


class Compute(Strict, frozen=True):
    """Achieved rate of convolution and matmul by precision, GMAC/s (1e9 multiply-accumulates a second)."""

    fp32: Rate
    fp16: Rate | None = None
    int8: Rate | None = None


class Memory(Strict, frozen=True):
    """Main memory."""

    bandwidth_gb_per_s: Rate
    """Bytes read and written by the cores, 1e9 bytes/s."""
    ram_mb: Rate
    """Memory that the system leaves for the runtime, 1e6 bytes."""


class Launch(Strict, frozen=True):
    """Time spent on starting work instead of arithmetic."""

    session_us: Figure
    """Time for each block: one call into the runtime, microseconds."""
    kernel_us: Figure
    """Time for each kernel: dispatch and the threads' barrier, microseconds."""


class Python(Strict, frozen=True):
    """How fast everything besides blocks runs."""

    work_ms: Rate
    """Time for a fixed piece of plain Python on one core (`runtime_edge.measure.plain_python`), ms."""


class Power(Strict, frozen=True):
    """Power of the whole board."""

    active_w: Figure
    """Power while a block runs on `threads` threads, W."""
    idle_w: Figure
    """Power while nothing runs, W. Only the difference from this is charged to a window."""


class OwnRadio(Strict, frozen=True):
    """Measurements of a board's own Wi-Fi, used instead of the published figures (`cost.radios`)."""

    mj_per_kb: Figure
    """Energy for 1000 bytes, mJ."""
    transmit_w: Figure
    """Power while transmitting, whatever the rate, W."""


class Target(Strict, frozen=True):
    """A kind of device."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    description: Annotated[str, Meta(max_length=400)]
    threads: Annotated[int, Meta(ge=1, le=256)]
    formats: Annotated[tuple[Literal["onnx", "tflite"], ...], Meta(min_length=1)]
    """The fastest first (`tools/bench_runtimes.py`); devices use that one if its runtime is installed."""
    providers: Annotated[tuple[Literal["cpu", "xnnpack", "coreml"], ...], Meta(min_length=1)]
    """The preferred one first; a runtime uses the first that it has."""
    compute: Compute
    memory: Memory
    launch: Launch
    power: Power
    python: Python | None = None
    """None in files of earlier versions; it is then scaled from x86-64's by the time of a call into the runtime."""
    radio: OwnRadio | None = None

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that this target has a rate for."""
        return tuple(name for name in self.compute.__struct_fields__ if getattr(self.compute, name) is not None)

    def gmacs_per_s(self, precision: str) -> float:
        """Achieved GMAC/s. Raises UsageError naming the known precisions."""
        if precision not in self.precisions:
            raise UsageError(f"target {self.name} has no precision {precision!r}, only {', '.join(self.precisions)}")
        rate: Rate = getattr(self.compute, precision)
        return rate.value


def list_targets() -> list[str]:
    """Names of the targets that come with the package, sorted."""
    return names_in(DIRECTORY)


def load_target(name_or_path: str | Path) -> Target:
    """Load a target by name, or from the user's own TOML file.

    Raises UsageError listing the known names, or naming the file and the field that is wrong; FormatError
    when the file cannot be read or is larger than 64 KiB.
    """
    path = figure_file(DIRECTORY, name_or_path, "target")
    return parse_target(read_bounded(path, MAX_TARGET_BYTES), str(path))


def parse_target(data: bytes, source: str) -> Target:
    """Read and check a target file. Raises UsageError naming `source` and the field."""
    target = decode(data, Target, source, MAX_TARGET_BYTES, UsageError, "TOML")
    if target.power.active_w.value < target.power.idle_w.value:
        raise UsageError(f"{source}: power.active_w is less than power.idle_w")
    return target
