"""A thin link between a device and the broker: a relay with a rate, a delay and a schedule."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from runtime_server.harness.relay import Clock, LinkState, Relay, Sleep


@dataclass(frozen=True)
class Phase:
    """A period with one uplink rate."""

    seconds: float
    uplink_mbps: float


class Shaper(Relay):
    """Relays connections to the broker; the uplink is paced by the schedule's current phase, and both ways are delayed.

    Before the schedule begins it passes everything on at once, so that fetching a first bundle does not delay the
    start.
    """

    def __init__(
        self,
        broker_port: int,
        phases: Sequence[Phase],
        one_way_ms: float,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        super().__init__(("127.0.0.1", broker_port), clock=clock, sleep=sleep)
        self._phases, self._delayed = list(phases), LinkState(one_way_ms=one_way_ms)
        self._began: float | None = None

    def now(self) -> LinkState:
        """The delay, and the rate of the current phase."""
        if self._began is None:
            return LinkState()
        return replace(self._delayed, uplink_mbps=self.uplink_mbps())

    def begin(self) -> None:
        """Start the schedule now."""
        self._began = self._clock()

    def uplink_mbps(self) -> float:
        """The rate of the current phase, or of the first one before the schedule begins; the last phase lasts."""
        elapsed = 0.0 if self._began is None else self._clock() - self._began
        for phase in self._phases:
            if elapsed < phase.seconds:
                return phase.uplink_mbps
            elapsed -= phase.seconds
        return self._phases[-1].uplink_mbps
