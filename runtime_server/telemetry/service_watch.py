"""Watches from the broker's side whether devices are served: the stream, the consumers, and waiting frames.

    watch = ServiceWatch(hub, ingest, partitions, mend, restart)
    asyncio.create_task(watch.run())
    watch.troubles                                  # what is wrong now, and what to do about each trouble

It judges by the outcome: frames wait and none is completed. So it notices every cause, be it a partition that nobody
reads or a thread that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import nats.js.errors
from nats.js.api import ConsumerInfo, StreamInfo

from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.errors import SscError
from runtime_edge.formats import subjects
from runtime_server.broker.consumer import PullConsumer
from runtime_server.broker.hub import Hub

_LOG = logging.getLogger(__name__)
PERIOD_S = 1.5
"""Time between the starts of two checks, unless the broker takes longer to answer."""
ANSWER_S = 2.0
"""A broker that has not answered after this long is reported as a trouble."""
STALLED_S = 6.0
"""Frames that wait this long without any being done are reported as a trouble."""
CANARY_S = 4.0
"""A stream that has stored no frame for this long is tested with one that no partition reads."""
LOOK_S = max(PERIOD_S, ANSWER_S)
"""Maximum time between two checks."""
TOLD_WITHIN_S = LOOK_S + max(STALLED_S, CANARY_S + ANSWER_S) + LOOK_S
"""Maximum time from a fault to its trouble, however slowly the broker answers: one check sees the last frame that was
stored or done; at a later check that is long enough ago, and that check ends."""
CANARY = "act.canary"
_GONE = "nothing on the broker reads what is sent there; the server makes its consumer again"


class Served(Protocol):
    """The parts of the ingest that the watch looks at."""

    @property
    def done(self) -> Mapping[int, int]:
        """Messages of each partition that need no redelivery."""

    @property
    def consumers(self) -> Mapping[int, PullConsumer]:
        """The consumers that are read, by partition."""

    def in_progress(self, partition: int) -> int:
        """Messages that have been delivered and are not done."""


class ServiceWatch:
    """Checks every `period_s` seconds until cancelled; `troubles` holds the results of the last check.

    Args:
        hub: the connection to the broker.
        ingest: what serves.
        partitions: the partitions that it serves.
        mend: creates missing streams; None: another process does.
        restart: restarts a broker that no longer writes; None: nobody here can.
        clock, sleep: the time in seconds, and a wait measured by it.
    """

    def __init__(
        self,
        hub: Hub,
        ingest: Served,
        partitions: Iterable[int],
        mend: Callable[[], Awaitable[None]] | None = None,
        restart: Callable[[], None] | None = None,
        *,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.troubles: list[str] = []
        self._hub, self._ingest, self._partitions = hub, ingest, tuple(partitions)
        self._mend, self._restart = mend, restart
        self._period_s, self._clock, self._sleep = period_s, clock, sleep
        self._progress = dict.fromkeys(self._partitions, (0, clock()))
        """For each partition: how many messages were done, and since when that number has not grown while messages
        waited."""
        self._written = 0, clock()
        """The stream's last message, and since when it has been the last."""
        self._unwritten = ""

    async def run(self) -> None:
        """Check until cancelled."""
        due = self._clock() + self._period_s
        while True:
            await self._sleep(max(0.0, due - self._clock()))
            due = self._clock() + self._period_s
            found = await self.look() if self._hub.client.is_connected else []
            known = {_what(trouble) for trouble in self.troubles}
            for trouble in found:
                if _what(trouble) not in known:
                    _LOG.error("%s", trouble)
            self.troubles = found

    async def look(self) -> list[str]:
        """What is wrong now; repairs what it can."""
        stream, asked = self._hub.client.jetstream(timeout=ANSWER_S), self._clock()
        try:
            told, infos = await asyncio.gather(
                stream.stream_info(subjects.STREAM), stream.consumers_info(subjects.STREAM)
            )
        except nats.js.errors.NotFoundError:
            return [await self._stream_gone()]
        except BROKER_ERRORS as exc:
            return [f"the broker does not say how its streams are ({reason(exc)}); see its log"]
        consumers = {info.name: info for info in infos}
        found = self._unserved(consumers, asked)
        return [*found, *([trouble] if self._mend and (trouble := await self._unwritable(told, asked)) else [])]

    async def _stream_gone(self) -> str:
        gone = f"the stream {subjects.STREAM} is gone from the broker, deleted or damaged"
        if self._mend is None:
            return f"{gone}; the first rank makes it again"
        self.troubles = [f"{gone}; it is being made again"]
        try:
            await self._mend()
            return f"{gone}; it has been made again, without the frames that it had"
        except (*BROKER_ERRORS, SscError) as exc:
            return f"{gone}, and cannot be made again ({reason(exc)}); see the broker's log"

    def _unserved(self, consumers: Mapping[str, ConsumerInfo], asked: float) -> list[str]:
        """One line for all partitions that are not served for the same reason; `asked` is when the broker was asked."""
        alike: dict[str, list[int]] = {}
        stalled, waiting, longest_s = [], 0, 0.0
        for partition in self._partitions:
            reader = self._ingest.consumers.get(partition)
            info = consumers.get(reader.name) if reader else None
            if info is None:
                alike.setdefault((reader and reader.refused) or _GONE, []).append(partition)
                continue
            left = (info.num_pending or 0) + self._ingest.in_progress(partition)
            for_s = self._stalled_s(partition, left, asked)
            if for_s >= STALLED_S:
                stalled.append(partition)
                waiting, longest_s = waiting + left, max(longest_s, for_s)
        if stalled:
            why = (
                f"{waiting} frames wait and none was done for {longest_s:.0f} s; see the server's log, and start it "
                "again if it does not go on"
            )
            alike[why] = stalled
        return [f"{_named(partitions)} not served: {why}" for why, partitions in alike.items()]

    def _stalled_s(self, partition: int, waiting: int, asked: float) -> float:
        """How long messages of a partition have been waiting without any being done."""
        done, since = self._progress[partition]
        if not waiting or done != self._ingest.done.get(partition, 0):
            since = asked
        self._progress[partition] = self._ingest.done.get(partition, 0), since
        return self._clock() - since

    async def _unwritable(self, told: StreamInfo, asked: float) -> str:
        """What prevents frames from being stored, or nothing; a stream that was idle is tested."""
        last, since = self._written
        if told.state.last_seq != last:
            self._written, self._unwritten = (told.state.last_seq, asked), ""
        elif self._unwritten or self._clock() - since >= CANARY_S:
            self._unwritten = await self._canary()
        return self._unwritten

    async def _canary(self) -> str:
        stream = self._hub.client.jetstream(timeout=ANSWER_S)
        try:
            stored = await stream.publish(CANARY, b"", timeout=ANSWER_S, stream=subjects.STREAM)
        except BROKER_ERRORS as exc:
            if self._restart is not None and self._unwritten and not isinstance(exc, nats.js.errors.APIError):
                self._restart()  # a stream that failed to write accepts nothing until then
            fix = "its log says why, most often a full disk: make room"
            again = "then it goes on by itself" if self._restart else "and start it again"
            return f"the broker stores no frames ({reason(exc)}); {fix}, {again}"
        self._written = stored.seq, self._clock()
        with contextlib.suppress(*BROKER_ERRORS):
            await stream.delete_msg(subjects.STREAM, stored.seq)
        return ""


def _what(trouble: str) -> str:
    """A trouble without the numbers that grow while it lasts."""
    whose, separator, why = trouble.partition(": ")
    return whose + separator + re.sub(r"\d+", "", why)


def _named(partitions: list[int]) -> str:
    """The partitions as the beginning of a sentence."""
    *others, last = map(str, partitions)
    return f"partitions {', '.join(others)} and {last} are" if others else f"partition {last} is"
