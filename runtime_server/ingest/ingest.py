"""Frames in, embeddings out: batch by (generation, cut), complete, reply, remember for training.

    this part (event loop)      takes frames off the broker, checks them, and gives batches to the stages
    decode   (a thread)         unpacks them                                          `decode_stage.py`
    complete (the torch thread) runs the suffix, one batch after the other            `complete_stage.py`
    count    (a thread)         records every window once, passes it to the trainer   `count_stage.py`
    answer   (event loop)       answers and acknowledges                              `answer_stage.py`

The messages between the stages are frozen (`batches.py`) and go one way. While a batch is completed, the previous one
is counted and answered and the next one is collected, so batches grow with the load by themselves. A frame is
acknowledged only after it has been counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager

from nats.aio.msg import Msg

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.errors import FrameError
from runtime_edge.formats import subjects
from runtime_server.adaptation.known_adaptations import KnownAdaptations
from runtime_server.broker.consumer import ACK_WAIT_S, HeldMessages, PullConsumer, delivery
from runtime_server.broker.hub import Hub
from runtime_server.broker.stream_shares import StreamShares
from runtime_server.ingest import dead_letters
from runtime_server.ingest.answer_stage import AGAIN_S, AnswerStage
from runtime_server.ingest.arrival import decode_arrival
from runtime_server.ingest.backlog import PASS_S, Backlog
from runtime_server.ingest.batches import CompletedBatch, FrameBatch
from runtime_server.ingest.complete_stage import CompleteStage
from runtime_server.ingest.count_stage import CountStage, Hear
from runtime_server.ingest.decode_stage import DecodeStage
from runtime_server.ingest.rate import RateLimit
from runtime_server.state.ledger import Ledger, PartitionedLedger
from runtime_server.state.suspects import DELIVERIES, Suspects
from runtime_server.suffix.generations import Generations
from runtime_server.training.trainer import Trainer

_LOG = logging.getLogger(__name__)
_LINGER_S = 0.003
"""How long a frame waits for a larger batch while nothing else is being completed."""
_QUIET_S = 60.0
"""A reason is logged again only after it has not occurred for this long."""
_COMPLETING, _PASSES = 2, 4
"""Batches given to the torch thread at once, and batches not answered yet."""


class Ingest:
    """Serves the partitions.

    Args:
        hub: the connection to the broker.
        generations: complete the frames.
        trainer: gets every window once; None: nothing is trained.
        ledger: which windows were counted.
        rate: limits the frames of each device.
        suspects: which frame crashed an earlier process.
        shares: learns each message's size in the stream.
        adaptations: those that devices may run, whose frames are completed with the same weights.
        hear: gets each new window that arrived as audio.
        ack_wait_s: how soon the broker redelivers the messages of a dead process.
        again_s: how soon a frame is redelivered that could not be stored as a dead letter.
    """

    def __init__(
        self,
        hub: Hub,
        generations: Generations,
        trainer: Trainer | None,
        ledger: Ledger | PartitionedLedger,
        rate: RateLimit | None = None,
        suspects: Suspects | None = None,
        shares: StreamShares | None = None,
        *,
        adaptations: KnownAdaptations | None = None,
        hear: Hear | None = None,
        ack_wait_s: float = ACK_WAIT_S,
        again_s: float = AGAIN_S,
    ) -> None:
        self._hub, self._generations = hub, generations
        self._rate, self._suspects, self._shares = rate or RateLimit(), suspects, shares
        self._backlog, self._held = Backlog(), HeldMessages(ack_wait_s)
        self._decode, self._complete = DecodeStage(generations, adaptations), CompleteStage()
        self._count = CountStage(generations, ledger, trainer, hear)
        self._answer = AnswerStage(hub, self._held, again_s)
        self.ledger = ledger
        self.consumers: dict[int, PullConsumer] = {}
        """The consumers that read from the broker, by partition."""
        self.counters, self.done = self._answer.counters, self._answer.done
        self.latency_ms = {"batch": self._complete.batch_ms, "reply": self._answer.reply_ms}
        self._completing = 0
        """Batches that are being decoded or completed."""
        self._said: dict[str, float] = {}
        """Reasons why partitions could not be read, with `time.monotonic()` when each last occurred, s."""
        self._passes: set[asyncio.Task[None]] = set()
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, partitions: Iterable[int]) -> None:
        """Serve until cancelled."""
        tasks = [asyncio.create_task(self._read(partition)) for partition in partitions]
        tasks += [asyncio.create_task(self._dispatch()), asyncio.create_task(self._held.keep())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel_all([*tasks, *self._passes])
            for stage in (self._decode, self._complete, self._count):
                stage.close()

    def in_progress(self, partition: int) -> int:
        """How many messages of a partition the broker has delivered that are neither done nor given up."""
        return self._held.count(partition)

    async def _read(self, partition: int) -> None:
        """Put the messages of one partition into the backlog; start over after the broker was away."""
        consumer = self.consumers[partition] = PullConsumer(self._hub.client, partition, self._held)
        while True:
            try:
                async for message in consumer.messages():
                    await self._accept(message, partition)
                    while self._backlog.crowded:
                        self._room.clear()
                        await self._room.wait()
            except BROKER_ERRORS as exc:
                if not consumer.refused:  # otherwise the watch reports it, for all partitions at once
                    self._say(partition, reason(exc))
                await asyncio.sleep(0.5)

    def _say(self, partition: int, why: str) -> None:
        """Log why a partition cannot be read: once for all partitions with the same reason, for as long as it lasts."""
        now = time.monotonic()
        known = now - self._said.get(why, -math.inf) <= _QUIET_S
        _LOG.log(logging.DEBUG if known else logging.WARNING, "partition %d cannot be read: %s", partition, why)
        self._said[why] = now

    async def _accept(self, message: Msg, partition: int) -> None:
        """Check a frame; an invalid one becomes a dead letter."""
        place, times = delivery(message)
        if self._shares is not None:
            self._shares.note(message.subject, place, len(message.data))
        try:
            arrivals = decode_arrival(message, place, time.monotonic())
        except FrameError as exc:
            device = message.subject.rsplit(".", 1)[-1]
            device = device if subjects.is_device(device) else dead_letters.UNKNOWN
            await self._answer.put_away_garbage(message, device, str(exc) if self._rate.allow(device) else "")
            return
        if self._suspects is not None and self._suspects.crashed_on(partition, place):
            await self._answer.put_away(message, arrivals[0].device, "the server died while it completed this frame")
            self._suspects.forget(partition)
            return
        suspect = self._suspects is not None and times > DELIVERIES
        for arrival in arrivals:
            if self._rate.allow(arrival.device):
                self._backlog.add(arrival, suspect=suspect)
            else:
                await self._answer.deny(arrival, self._generations.newest.number)
        self._changed.set()

    async def _dispatch(self) -> None:
        """Give batches to the stages: any batch if the torch thread is idle, otherwise one worthwhile batch ahead."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for task in [task for task in self._passes if task.done()]:
                self._passes.discard(task)
                task.result()
            while self._completing < _COMPLETING and len(self._passes) < _PASSES and len(self._backlog):
                batch = self._backlog.next_batch(time.monotonic() - (PASS_S if self._completing else _LINGER_S))
                if batch is None:
                    self._dispatch_later()
                    break
                self._room.set()
                if batch.suspect:  # alone, so that a crash can be attributed to it
                    await asyncio.gather(*self._passes)
                task = asyncio.create_task(self._pass(batch))
                self._passes.add(task)
                task.add_done_callback(lambda _: self._changed.set())
                self._completing += 1
                if batch.suspect:
                    await asyncio.wait([task])

    def _dispatch_later(self) -> None:
        """Dispatch again once the waiting frames have waited long enough for a larger batch."""
        if self._timer is None or self._timer.when() < asyncio.get_running_loop().time():
            self._timer = asyncio.get_running_loop().call_later(_LINGER_S, self._changed.set)

    async def _pass(self, batch: FrameBatch) -> None:
        """Take one batch through all stages."""
        with self._blaming(batch):
            counted = await self._count.count(await self._completed(batch))
        await self._answer.answer(counted)
        await self._count.catch_up(self._is_busy)

    def _is_busy(self) -> bool:
        """Whether frames are waiting or being completed, so that less urgent work should wait. From any thread."""
        return self._completing > 0 or len(self._backlog) > 0

    async def _completed(self, batch: FrameBatch) -> CompletedBatch:
        try:
            completed = await self._complete.complete(await self._decode.decode(batch))
        finally:
            self._completing -= 1
            self._changed.set()
        self._backlog.record_duration(batch, completed.seconds)
        return completed

    def _blaming(self, batch: FrameBatch) -> AbstractContextManager[None]:
        """Inside the block, a crash is attributed to the batch's frame if it is a suspect."""
        if self._suspects is None or not batch.suspect:
            return contextlib.nullcontext()
        suspect = batch.arrivals[0]
        return self._suspects.retrying_alone(subjects.partition(suspect.device), suspect.sequence)
