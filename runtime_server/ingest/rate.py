"""Limits how many frames of each device are completed, by a token bucket per device (the broker has no such limit)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

FRAMES_PER_S = 100.0
_BURST_S = 1000.0
MAX_DEVICES = 16_384


class RateLimit:
    """Allows each device `per_s` frames a second; at first and after a silence, 1000 seconds' worth at once.

    A device that replays days of spooled frames stays below that, and a flood still ends within seconds. Beyond
    `max_devices` devices, the least recently active ones are forgotten.
    """

    def __init__(
        self,
        per_s: float = FRAMES_PER_S,
        clock: Callable[[], float] = time.monotonic,
        max_devices: int = MAX_DEVICES,
    ) -> None:
        self._per_s, self._burst, self._clock = per_s, per_s * _BURST_S, clock
        self._max_devices = max_devices
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, device: str) -> bool:
        """Whether another frame of this device may be completed now; if so, it is counted."""
        now = self._clock()
        tokens, at = self._buckets.pop(device, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._per_s)
        allowed = tokens >= 1
        self._buckets[device] = (tokens - allowed, now)
        if len(self._buckets) > self._max_devices:
            self._buckets.popitem(last=False)
        return allowed
