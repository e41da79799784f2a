"""A device process that computes as slowly as another machine.

Every block uses the processor for as long as the target's cost table says; so do the encoders of bottlenecks and the
exits, for which the splitter's actions use the same numbers. Everything else the process does (Python, encoding frames
and latents, the disk queue) takes `python_factor` times as long as it does here. A thread pays this debt before anybody
can see its work (before a block, a frame, a write to a socket or to the results) and before it waits. The time spent
making frames, in its thread's time, is accounted for and written at the end. The processor is really used, so another
program on the same processor slows both down, as it would there. Nothing is paced until the first block has run, so
that a device starts as fast as this machine. Threads whose work nobody sees, such as the one that writes the status,
are not paced either.
"""

from __future__ import annotations

import asyncio
import asyncio.selector_events
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

import runtime_edge.inference.engine
import runtime_edge.system
from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.base.line_writer import LineWriter
from runtime_edge.base.worker import Worker
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.latent_codec import LatentCodec
from runtime_edge.inference.contract import LoadedBlock
from runtime_edge.inference.cut_assets import bottleneck, early_exit, small_block
from runtime_edge.inference.prefix import Prefix

_SEEN = (
    (Worker, "pass_on"),
    (LineWriter, "put"),
    (asyncio.selector_events._SelectorSocketTransport, "write"),  # type: ignore[attr-defined]
)
"""Where others see a thread's work: when it is passed to the event loop, written to the results, or sent."""
_WORK = bytes(1 << 14)
"""Hashed to keep the processor busy: takes some ten microseconds, without Python's lock."""
_Result = TypeVar("_Result")


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How slow the emulated machine is."""

    block_ms: list[float]
    """The time of each block on the target when it has the processor to itself."""
    python_factor: float
    """How many times longer everything else takes there."""
    bottleneck_ms: dict[str, float] = {}
    """The time of each bottleneck's encoder, by cut."""
    exit_ms: dict[str, float] = {}
    """The time of each exit, by cut."""


class Encoded(msgspec.Struct, forbid_unknown_fields=True):
    """The paced time spent on making frames so far."""

    seconds: float = 0.0
    frames: int = 0

    @property
    def mean_ms(self) -> float:
        """The mean time for one frame."""
        return self.seconds * 1e3 / max(self.frames, 1)


def read_pace(path: str) -> Pace:
    """Read the pace from a JSON file."""
    return msgspec.json.decode(Path(path).read_bytes(), type=Pace)


def write_account(path: str, encoded: Encoded) -> None:
    """Write the account as JSON."""
    Path(path).write_bytes(msgspec.json.encode(encoded))


class Debts:
    """The processor time of each thread since it last paid for it; one object serves all threads.

    Args:
        factor: how many times longer everything takes on the target.
        clock: the processor time of the calling thread, s.
        use: computes until that clock shows a given time.
    """

    def __init__(
        self,
        factor: float,
        clock: Callable[[], float] = time.thread_time,
        use: Callable[[float], None] | None = None,
    ) -> None:
        self._more = max(0.0, factor - 1.0)
        self._clock, self._use = clock, use or use_processor_until
        self._paid = threading.local()
        self.running = False
        """Set once the first block has run; before that, nothing is owed."""

    def pay(self) -> None:
        """Use the processor for the extra time that the target would have taken."""
        if self.running:
            paid = getattr(self._paid, "until", None)
            now = self._clock()
            if paid is not None:
                self._use(now + self._more * (now - paid))
        self.forgive()

    def forgive(self) -> None:
        """Treat everything done so far as paid."""
        self._paid.until = self._clock()


def apply(pace: Pace, cores: list[int]) -> Encoded:
    """Slow this process down, and show it only the load of its own processors: the others represent other machines.

    Returns an account that is updated as frames are made.
    """
    encoded, debts = Encoded(), Debts(pace.python_factor)

    class PacedPrefix(Prefix):
        def load(self, index: int) -> LoadedBlock:
            block = super().load(index)
            paced = _PacedBlock(block, pace.block_ms[index] / 1e3, debts)
            self._blocks[index] = paced
            return paced

    _replace(runtime_edge.inference.engine, "Prefix", PacedPrefix)
    for assets, times in ((bottleneck, pace.bottleneck_ms), (early_exit, pace.exit_ms)):
        _replace(assets, "load_behind", _paced_behind(small_block.load_behind, times, debts))
    for codec in (CutCodec, LatentCodec, AudioStreamEncoder):
        _replace(codec, "encode", _accounted(codec.encode, debts, encoded))
    for owner, name in _SEEN:
        _replace(owner, name, _paid_before(getattr(owner, name), debts))
    _replace(asyncio.Handle, "_run", _paid_after(asyncio.Handle._run, debts))
    if cores:
        _replace(runtime_edge.system, "_cpu_times", lambda: _cpu_times(cores))
    return encoded


def see_own_load() -> None:
    """Make this process see itself as the only one on a processor: the others here represent other machines."""
    _replace(runtime_edge.system, "_cpu_times", lambda: (time.process_time(), time.monotonic()))


def _replace(owner: Any, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        raise AttributeError(f"{owner.__name__} has no {name} any more: the pacing must be adapted")
    setattr(owner, name, value)


class _PacedBlock:
    def __init__(self, block: LoadedBlock, seconds: float, debts: Debts) -> None:
        self._block, self._seconds, self._debts = block, seconds, debts

    def run(self) -> None:
        self._debts.pay()
        began = time.thread_time()
        self._block.run()
        use_processor_until(began + self._seconds)
        self._debts.running = True
        self._debts.forgive()


def _paced_behind(
    load: Callable[..., LoadedBlock], times_ms: Mapping[str, float], debts: Debts
) -> Callable[..., LoadedBlock]:
    """Like `load_behind`, for blocks of one kind that take these times."""

    def paced(prefix: Prefix, cut: str, *arguments: Any) -> LoadedBlock:
        return _PacedBlock(load(prefix, cut, *arguments), times_ms[cut] / 1e3, debts)

    return paced


def use_processor_until(thread_time_s: float) -> None:
    """Compute until this thread has used this much processor time."""
    while time.thread_time() < thread_time_s:
        hashlib.blake2b(_WORK)


def _accounted(call: Callable[..., _Result], debts: Debts, encoded: Encoded) -> Callable[..., _Result]:
    def accounted(*arguments: Any, **named: Any) -> _Result:
        debts.pay()
        began = time.thread_time()
        result = call(*arguments, **named)
        debts.pay()
        encoded.seconds += time.thread_time() - began
        encoded.frames += 1
        return result

    return accounted


def _paid_before(call: Callable[..., _Result], debts: Debts) -> Callable[..., _Result]:
    def paid(*arguments: Any, **named: Any) -> _Result:
        debts.pay()
        return call(*arguments, **named)

    return paid


def _paid_after(call: Callable[..., None], debts: Debts) -> Callable[..., None]:
    def paid(handle: Any) -> None:
        call(handle)
        debts.pay()

    return paid


def _cpu_times(cores: list[int]) -> tuple[float, float]:
    """Busy and total time of some processors, as `runtime_edge.system` reads them."""
    every = psutil.cpu_times(percpu=True)
    busy = total = 0.0
    for core in cores:
        times = every[core]._asdict()
        all_of_it = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        total += all_of_it
        busy += all_of_it - times["idle"] - times.get("iowait", 0.0)
    return busy, total
