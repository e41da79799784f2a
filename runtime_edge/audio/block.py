"""What the steps between a source and a window pass on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

_HELD = threading.Lock()
_HELD.acquire()


def _sleep(seconds: float) -> None:
    """Wait for a lock that nobody releases: `time.sleep` fails under programs that fake the wall clock."""
    _HELD.acquire(timeout=seconds)


@dataclass(frozen=True, slots=True)
class Clock:
    """The time, injected so that pacing and time stamps can be tested."""

    wall_ns: Callable[[], int] = time.time_ns
    """Nanoseconds since 1970; read once for each source, so later jumps of the clock do no harm."""

    monotonic: Callable[[], float] = time.monotonic
    """Seconds that never jump."""

    sleep: Callable[[float], object] = _sleep
    """Seconds."""


SYSTEM_CLOCK = Clock()


@dataclass(slots=True)
class Counters:
    """What happened to the audio so far. Samples are counted at the rate asked for unless stated."""

    blocks: int = 0
    samples: int = 0
    windows: int = 0
    """Windows handed out, gated ones not included."""

    gated: int = 0
    """Windows under the silence gate: they keep their index but are not handed out."""

    overruns: int = 0
    """Times a live source was faster than its reader and the oldest audio was dropped."""

    dropped_samples: int = 0
    """Samples missing from the time line: dropped in an overrun, or never delivered by a stalled source."""

    bad_samples: int = 0
    """NaN and infinite values replaced by 0 (counted at the source's rate, in every channel)."""

    clipped_samples: int = 0
    """Values beyond [-1, 1] that were clipped (counted at the source's rate, in every channel)."""

    files_skipped: int = 0
    """Files of a directory that could not be read, or not to their end."""


class AudioBlock(msgspec.Struct, frozen=True):
    """A run of mono audio at the rate asked for.

    Attributes:
        samples: float32[n] in [-1, 1], n >= 1, contiguous.
        start_time_ns: capture time at which the first sample begins, ns since 1970.
        end_time_ns: capture time at which the last sample ends, ns since 1970.
        gap_samples: samples missing between the previous block and this one; 0 when they join.
        ready_at: when a reader could have had it at the earliest, monotonic seconds.
        begins: the audio file whose first sample is the block's first; None when no file begins here.
    """

    samples: NDArray[np.float32]
    start_time_ns: int
    end_time_ns: int
    gap_samples: int = 0
    ready_at: float = 0.0
    begins: str | None = None
