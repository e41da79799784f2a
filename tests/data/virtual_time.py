"""Time that passes only by being slept through, for what takes a clock and a sleep."""

import asyncio
import heapq
import itertools
import selectors

TURNS = 10
"""Of the event loop, in which whatever can be done without time passing is done."""


class VirtualTime:
    """`clock()` in seconds, and `sleep(seconds)`: whoever is due first wakes first, and moves the clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sleepers: list[tuple[float, int]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        own = self.seconds + seconds, next(self._numbers)
        heapq.heappush(self._sleepers, own)
        try:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            while self._sleepers[0] != own:
                await asyncio.sleep(0)
            self.seconds = max(self.seconds, own[0])
        finally:
            self._sleepers.remove(own)
            heapq.heapify(self._sleepers)


class _Selector(selectors.SelectSelector):
    """Waits for nothing: the time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waits: list[float] = []

    def select(self, timeout=None):
        if timeout:
            self.waits.append(timeout)
            self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes whenever nothing is left to be done."""

    def __init__(self) -> None:
        self.passed = _Selector()
        super().__init__(self.passed)

    def time(self) -> float:
        return self.passed.now

    async def pass_by(self, seconds: float) -> None:
        """Let so much time pass, and whatever is due meanwhile happen."""
        over = self.create_future()
        self.call_later(seconds, over.set_result, None)
        await over

    def run(self, work):
        try:
            return self.run_until_complete(work)
        finally:
            self.close()
