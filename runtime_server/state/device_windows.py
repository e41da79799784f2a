"""Which windows of one device have been counted, within limits per device."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterator

MAX_RUNS = 4096
"""Per device. A device that ships every second window for more than an hour has this many."""
MAX_BOOTS = 64
FORGOTTEN = ""
"""Used in place of a boot for windows of which only the count is still known."""

Runs = list[list[int]]
"""First and last index of each gapless run of windows, ascending."""


class DeviceWindows:
    """Window indices seen for each boot of a device, as sorted runs; small because indices are mostly dense.

    Beyond `MAX_RUNS`, the lowest indices of the least recently active boot are forgotten; beyond `MAX_BOOTS`, that
    whole boot. A forgotten window stays counted; if it comes again, it is counted again.
    """

    def __init__(self) -> None:
        self.count = 0
        """Windows counted, including forgotten ones."""
        self.runs = 0
        self._boots: OrderedDict[str, Runs] = OrderedDict()
        self._forgotten = 0

    def holds(self, boot: str, index: int) -> bool:
        """Whether a window was recorded."""
        runs = self._boots.get(boot, [])
        place = bisect.bisect_right(runs, [index, 1 << 62])
        return place > 0 and index <= runs[place - 1][1]

    def add(self, boot: str, index: int) -> bool:
        """Record a window; False if it was recorded before."""
        runs = self._boots.get(boot)
        if runs is None:
            runs = self._boots[boot] = []
        else:
            self._boots.move_to_end(boot)
        place = bisect.bisect_right(runs, [index, 1 << 62])
        before = runs[place - 1] if place else None
        if before is not None and index <= before[1]:
            return False
        after = runs[place] if place < len(runs) else None
        touches_before = before is not None and before[1] + 1 == index
        touches_after = after is not None and after[0] == index + 1
        if touches_before and touches_after:
            assert before is not None
            before[1] = runs.pop(place)[1]
            self.runs -= 1
        elif touches_before:
            assert before is not None
            before[1] = index
        elif touches_after:
            assert after is not None
            after[0] = index
        else:
            runs.insert(place, [index, index])
            self.runs += 1
            self.forget(MAX_RUNS)
        self.count += 1
        return True

    def restore(self, boot: str, runs: Runs) -> None:
        """Restore what `chains` returned for a boot."""
        count = sum(last - first + 1 for first, last in runs)
        self.count += count
        if boot == FORGOTTEN:
            self._forgotten += count
        elif runs:
            self._boots[boot] = runs
            self.runs += len(runs)
            self.forget(MAX_RUNS)

    def forget(self, most_runs: int) -> None:
        """Keep at most `most_runs` runs and `MAX_BOOTS` boots."""
        while self.runs > most_runs or len(self._boots) > MAX_BOOTS:
            boot, runs = next(iter(self._boots.items()))
            over = len(runs) if len(self._boots) > MAX_BOOTS else min(self.runs - most_runs, len(runs))
            self._forgotten += sum(last - first + 1 for first, last in runs[:over])
            del runs[:over]
            self.runs -= over
            if not runs:
                del self._boots[boot]

    def chains(self) -> Iterator[tuple[str, Runs]]:
        """Every boot with its runs, the least recently active first; FORGOTTEN comes before them all."""
        if self._forgotten:
            yield FORGOTTEN, [[0, self._forgotten - 1]]
        yield from self._boots.items()
