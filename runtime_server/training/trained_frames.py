"""Which frames of the stream the trainer has received, so that a replay adds none twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

_REMEMBERED = 1 << 14


class TrainedFrames:
    """Sequence numbers of frames: the last `remembered` exactly; everything up to `floor` counts as trained.

    Frames arrive nearly in the order of the stream, so only a frame that arrives more than `remembered` others late
    would wrongly count as trained.
    """

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self.floor = 0
        """Every sequence number up to here counts as trained."""
        self._remembered = remembered
        self._last: deque[int] = deque()
        self._set: set[int] = set()

    def add(self, sequence: int) -> None:
        """Record a sequence number; 0, which means none, is ignored."""
        if sequence < 1 or sequence in self:
            return
        self._last.append(sequence)
        self._set.add(sequence)
        if len(self._last) > self._remembered:
            forgotten = self._last.popleft()
            self._set.discard(forgotten)
            self.floor = max(self.floor, forgotten)

    def __contains__(self, sequence: int) -> bool:
        return sequence <= self.floor or sequence in self._set

    def last(self) -> list[int]:
        """The remembered sequence numbers, in order of arrival."""
        return list(self._last)

    @classmethod
    def of(cls, floor: int, last: Iterable[int]) -> TrainedFrames:
        """Restore from `floor` and `last`."""
        taken = cls()
        taken.floor = floor
        for sequence in last:
            taken.add(sequence)
        return taken
