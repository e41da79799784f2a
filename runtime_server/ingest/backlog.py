"""Frames waiting to be completed, grouped so that one pass through a suffix can complete a group together."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator

from runtime_server.ingest.arrival import Arrival
from runtime_server.ingest.batches import FrameBatch

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of frames in a pass; the remaining frames join the next pass. torch prepares every convolution for each batch
size it meets, and keeps that: all sizes up to 64 took 150 MB, these sizes no noticeable memory (MobileNetV3-Small)."""
LARGEST, SMALLEST = 64, 4
"""The throughput of MobileNetV3-Small's suffix stops growing at 64, and half of the possible gain is reached by 8."""
WORTHWHILE = 0.5
"""Share of the frames that a pass may take; with this many, a pass need not wait for more."""
PASS_S = 0.05
"""The duration of a pass to aim for, s: a slow suffix gets fewer frames, so that others do not wait much longer."""
_MAX_FRAMES, _MAX_BYTES = 256, 64 << 20

Key = tuple[int, int, int, int]
"""Generation, cut, the model that made the frames, and the stream position of a suspect, or 0."""


class Backlog:
    """Frames by group, the oldest first; each suspect is a group of its own."""

    def __init__(self) -> None:
        self._groups: dict[Key, deque[Arrival]] = {}
        self._cost_s: dict[tuple[int, int], float] = {}
        self._frames = self._bytes = 0

    def __len__(self) -> int:
        return self._frames

    def __iter__(self) -> Iterator[Arrival]:
        return (arrival for group in self._groups.values() for arrival in group)

    @property
    def crowded(self) -> bool:
        """Whether to pause reading from the broker."""
        return self._frames >= _MAX_FRAMES or self._bytes >= _MAX_BYTES

    def add(self, arrival: Arrival, suspect: bool = False) -> None:
        """Add a frame."""
        header = arrival.header
        key = header.generation, header.cut, header.model, arrival.sequence if suspect else 0
        self._groups.setdefault(key, deque()).append(arrival)
        self._frames += 1
        self._bytes += len(arrival.payload)

    def next_batch(self, before: float) -> FrameBatch | None:
        """The next batch: the longest-waiting group that is large enough or whose first frame arrived `before`."""
        ready = [
            key
            for key, group in self._groups.items()
            if group[0].arrived <= before or len(group) >= WORTHWHILE * self._largest(key)
        ]
        if not ready:
            return None
        key = min(ready, key=lambda key: self._groups[key][0].arrived)
        group = self._groups[key]
        size = SIZES[bisect.bisect_right(SIZES, min(len(group), self._largest(key))) - 1]
        arrivals = [group.popleft() for _ in range(size)]
        if not group:
            del self._groups[key]
        self._frames -= len(arrivals)
        self._bytes -= sum(len(arrival.payload) for arrival in arrivals)
        return FrameBatch(key[0], key[1], arrivals, suspect=key[3] > 0)

    def record_duration(self, batch: FrameBatch, seconds: float) -> None:
        """Use a pass's duration to decide how many frames the next one of its kind may hold."""
        kind, cost_s = (batch.generation, batch.cut), seconds / len(batch.arrivals)
        self._cost_s[kind] = cost_s + 0.7 * (self._cost_s.get(kind, cost_s) - cost_s)
        while len(self._cost_s) > 64:
            del self._cost_s[next(iter(self._cost_s))]

    def _largest(self, key: Key) -> int:
        cost_s = self._cost_s.get(key[:2])
        return LARGEST if not cost_s else min(max(int(PASS_S / cost_s), SMALLEST), LARGEST)
