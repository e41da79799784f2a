"""A device process that computes as slowly as another machine.

Every block takes the processor for as long as the target's cost table says, and the encoding of a frame, Opus's
included, for `scalar_factor` times what it took here; an account of the latter, in its thread's time, is written at the
end. The processor is really used, so another program on the same one slows both down, as it would there. What is not
paced: the Python around the blocks, some milliseconds a window.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

import runtime_edge.inference.engine
import runtime_edge.system
from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.formats.codec import CutCodec
from runtime_edge.inference.contract import LoadedBlock
from runtime_edge.inference.prefix import Prefix

_WORK = bytes(1 << 14)
"""Hashed to use the processor up: some ten microseconds, without Python's lock."""
_Result = TypeVar("_Result")


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How slow."""

    block_ms: list[float]
    """Of each block on the target, with the processor to itself."""
    scalar_factor: float
    """How many times longer other arithmetic takes there."""


class Encoded(msgspec.Struct, forbid_unknown_fields=True):
    """What making frames has taken so far, paced."""

    seconds: float = 0.0
    frames: int = 0

    @property
    def mean_ms(self) -> float:
        """Of one frame."""
        return self.seconds * 1e3 / max(self.frames, 1)


def read_pace(path: str) -> Pace:
    """From a JSON file."""
    return msgspec.json.decode(Path(path).read_bytes(), type=Pace)


def write_account(path: str, encoded: Encoded) -> None:
    """As JSON."""
    Path(path).write_bytes(msgspec.json.encode(encoded))


def apply(pace: Pace, cores: list[int]) -> Encoded:
    """Slow this process down, and have it see the load of its own processors only: the others represent other machines.

    Returns an account that is updated as frames are made.
    """
    encoded = Encoded()

    class PacedPrefix(Prefix):
        def load(self, index: int) -> LoadedBlock:
            block = super().load(index)
            paced = _PacedBlock(block, pace.block_ms[index] / 1e3)
            self._blocks[index] = paced
            return paced

    _replace(runtime_edge.inference.engine, "Prefix", PacedPrefix)
    for codec in (CutCodec, AudioStreamEncoder):
        _replace(codec, "encode", _slowed(codec.encode, pace.scalar_factor, encoded))
    if cores:
        _replace(runtime_edge.system, "_cpu_times", lambda: _cpu_times(cores))
    return encoded


def _replace(owner: Any, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        raise AttributeError(f"{owner.__name__} has no {name} any more: the pacing must be adapted")
    setattr(owner, name, value)


class _PacedBlock:
    def __init__(self, block: LoadedBlock, seconds: float) -> None:
        self._block, self._seconds = block, seconds

    def run(self) -> None:
        began = time.thread_time()
        self._block.run()
        use_processor_until(began + self._seconds)


def use_processor_until(thread_time_s: float) -> None:
    """Compute until this thread has had so much of a processor."""
    while time.thread_time() < thread_time_s:
        hashlib.blake2b(_WORK)


def _slowed(call: Callable[..., _Result], factor: float, encoded: Encoded) -> Callable[..., _Result]:
    def slowed(*arguments: Any, **named: Any) -> _Result:
        began = time.thread_time()
        result = call(*arguments, **named)
        use_processor_until(began + factor * (time.thread_time() - began))
        encoded.seconds += time.thread_time() - began
        encoded.frames += 1
        return result

    return slowed


def _cpu_times(cores: list[int]) -> tuple[float, float]:
    """As `runtime_edge.system` reads them, of some processors."""
    every = psutil.cpu_times(percpu=True)
    busy = total = 0.0
    for core in cores:
        times = every[core]._asdict()
        all_of_it = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        total += all_of_it
        busy += all_of_it - times["idle"] - times.get("iowait", 0.0)
    return busy, total
