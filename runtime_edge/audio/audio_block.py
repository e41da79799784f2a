"""The blocks of audio that pass from a source to the windows."""

from __future__ import annotations

import datetime as dt
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
    """Wait for a lock that nobody releases: `time.sleep` fails in programs that fake the wall clock."""
    _HELD.acquire(timeout=seconds)


@dataclass(frozen=True, slots=True)
class Clock:
    """The time, injected so that pacing and time stamps can be tested."""

    wall_ns: Callable[[], int] = time.time_ns
    """Nanoseconds since 1970."""

    monotonic: Callable[[], float] = time.monotonic
    """Seconds that never jump."""

    sleep: Callable[[float], object] = _sleep
    """Waits for so many seconds."""


SYSTEM_CLOCK = Clock()


@dataclass(slots=True)
class Counters:
    """What happened to the audio so far. Samples are counted at the rate asked for unless stated."""

    blocks: int = 0
    samples: int = 0
    windows: int = 0
    """Windows handed out, gated ones not included."""

    gated: int = 0
    """Windows below the silence gate: they keep their index but are not handed out."""

    overruns: int = 0
    """How often a live source was faster than its reader, so that the oldest audio was dropped."""

    dropped_samples: int = 0
    """Samples missing from the time line: dropped in an overrun, or never delivered by a stalled source."""

    bad_samples: int = 0
    """NaN and infinite values replaced by 0 (counted at the source's rate, in every channel)."""

    clipped_samples: int = 0
    """Values beyond [-1, 1] that were clipped (counted at the source's rate, in every channel)."""

    cancelled_samples: int = 0
    """Samples of the mix in stretches where the channels cancel each other out (counted at the source's rate)."""

    offset_samples: int = 0
    """Samples in stretches with a constant offset (counted at the source's rate)."""

    clock_steps: int = 0
    """How often the wall clock was set while audio was read: from then on, times follow the new setting."""

    measured_rate_hz: int = 0
    """The samples per second that a live source really delivers, if that is not the rate it states; else 0."""

    files_skipped: int = 0
    """Files of a directory that gave no audio."""

    files_cut_short: int = 0
    """Files that were not read to their end, or that state a length other than their own."""

    told: tuple[str, ...] = ()
    """The kinds of sample faults already reported, once for all recordings that share these counters."""


class Recording(msgspec.Struct, frozen=True):
    """An audio file being played."""

    name: str
    """Its path, as text."""
    began: dt.datetime | None = None
    """When its first sample was recorded, if the file says so; with a time zone only if the file gives one."""


class AudioBlock(msgspec.Struct, frozen=True):
    """A run of mono audio at the requested rate.

    Attributes:
        samples: float32[n] in [-1, 1], n >= 1, contiguous.
        start_time_ns: capture time at which the first sample begins, ns since 1970.
        end_time_ns: capture time at which the last sample ends, ns since 1970.
        gap_samples: samples missing between the previous block and this one; 0 when they join.
        ready_at: the earliest time at which a reader could have had it, monotonic seconds.
        begins: the recording whose first sample is the block's first; None when none begins here.
        ends: whether its last sample is the recording's last, if that is known before another recording begins.
    """

    samples: NDArray[np.float32]
    start_time_ns: int
    end_time_ns: int
    gap_samples: int = 0
    ready_at: float = 0.0
    begins: Recording | None = None
    ends: bool = False
