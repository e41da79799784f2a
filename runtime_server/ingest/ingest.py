"""Frames in, embeddings out: batch by (generation, cut), complete, reply, remember for training.

    the event loop      takes frames off the broker, checks them, answers and acknowledges
    the decode thread   unpacks them
    the torch thread    runs the suffix, one batch after the other
    the counting thread notes every window once, teaches the trainer, and in quiet moments the device's mixture

While a batch is completed, the one before it is counted and answered and the next one comes together, so that batches
grow with the load by themselves. A frame is acknowledged when it has been counted, and never before.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from nats.aio.msg import Msg

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.base.histogram import Histogram
from runtime_edge.errors import FrameError
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import Reply, ReplyStatus, encode_reply
from runtime_server.broker.consumer import ACK_WAIT_S, HeldMessages, PullConsumer
from runtime_server.broker.hub import Hub
from runtime_server.ingest import dead_letters
from runtime_server.ingest.arrival import Arrival, decode_arrival
from runtime_server.ingest.backlog import PASS_S, Backlog, FrameBatch
from runtime_server.ingest.completion import Completer, Completion
from runtime_server.ingest.rate import RateLimit
from runtime_server.state.ledger import Ledger, PartitionedLedger
from runtime_server.state.suspects import DELIVERIES, Suspects
from runtime_server.suffix.generations import Generations
from runtime_server.training.mixtures import Mixtures
from runtime_server.training.trainer import Trainer

_LOG = logging.getLogger(__name__)
_LINGER_S = 0.003
"""How long a frame waits for a larger batch when nothing else is being completed."""
AGAIN_S = 5.0
_COMPLETING, _PASSES = 2, 4
"""Batches given to the torch thread at once, and batches that are not answered yet."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Ingest:
    """Serves the partitions.

    Args:
        hub: the connection to the broker.
        generations: what completes frames.
        trainer: gets every window once; None: nothing is trained.
        ledger: which windows were counted.
        rate: of the frames of one device.
        suspects: what frame an earlier process died of.
        ack_wait_s: the broker delivers what a dead process had after so long.
        again_s: a frame that could not be put away comes again after so long.
    """

    def __init__(
        self,
        hub: Hub,
        generations: Generations,
        trainer: Trainer | None,
        ledger: Ledger | PartitionedLedger,
        rate: RateLimit | None = None,
        suspects: Suspects | None = None,
        *,
        ack_wait_s: float = ACK_WAIT_S,
        again_s: float = AGAIN_S,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.latency_ms = {"batch": Histogram(), "reply": Histogram()}
        """Of a batch in the torch thread, and of a frame from its arrival to its answer."""
        self.done: Counter[int] = Counter()
        """Messages of each partition that need not come again: acknowledged, or dead letters."""
        self.consumers: dict[int, PullConsumer] = {}
        """What is read of the broker, by partition."""
        self.ledger = ledger
        self._hub, self._generations, self._trainer = hub, generations, trainer
        self._rate, self._suspects = rate or RateLimit(), suspects
        self._letters = RateLimit(dead_letters.PER_S)
        self._completer, self._mixtures = Completer(generations), Mixtures()
        self._backlog, self._held, self._again_s = Backlog(), HeldMessages(ack_wait_s), again_s
        self._decoding, self._torch = ThreadPoolExecutor(1, "decode"), ThreadPoolExecutor(1, "complete")
        self._counting = ThreadPoolExecutor(1, "count")
        self._completing = self._to_count = 0
        self._passes: set[asyncio.Task[None]] = set()
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, partitions: Iterable[int]) -> None:
        """Until cancelled."""
        tasks = [asyncio.create_task(self._read(partition)) for partition in partitions]
        tasks += [asyncio.create_task(self._dispatch()), asyncio.create_task(self._held.keep())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel_all([*tasks, *self._passes])
            for thread in (self._decoding, self._torch, self._counting):
                thread.shutdown(wait=True)

    def in_progress(self, partition: int) -> int:
        """How many messages of a partition the broker has handed over that are neither done nor given up."""
        return self._held.count(partition)

    async def _read(self, partition: int) -> None:
        """Messages of one partition into the backlog; starts over when the broker was away."""
        while True:
            try:
                consumer = self.consumers[partition] = PullConsumer(self._hub.client, partition, self._held)
                async for message in consumer.messages():
                    await self._accept(message, partition)
                    while self._backlog.crowded:
                        self._room.clear()
                        await self._room.wait()
            except BROKER_ERRORS as exc:
                _LOG.warning("partition %d: %s", partition, reason(exc))
                await asyncio.sleep(0.5)

    async def _accept(self, message: Msg, partition: int) -> None:
        """Check a frame; an invalid one becomes a dead letter."""
        try:
            arrivals = decode_arrival(message, time.monotonic())
        except FrameError as exc:
            self.counters["garbage"] += 1
            device = message.subject.rsplit(".", 1)[-1]
            device = device if subjects.is_device(device) else dead_letters.UNKNOWN
            await self._to_dead_letters(message, device, str(exc) if self._rate.allow(device) else "")
            return
        first = arrivals[0]
        if self._suspects is not None and self._suspects.crashed_on(partition, first.sequence):
            await self._to_dead_letters(message, first.device, "the server died while it completed this frame")
            self._suspects.forget(partition)
            return
        suspect = self._suspects is not None and message.metadata.num_delivered > DELIVERIES
        for arrival in arrivals:
            if self._rate.allow(arrival.device):
                self._backlog.add(arrival, suspect=suspect)
            else:
                await self._deny(arrival)
        self._changed.set()

    async def _dispatch(self) -> None:
        """Batches to the torch thread: at once when it has nothing to do, else those worth it, one ahead."""
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
        """Dispatch again when the waiting frames have waited long enough for a larger batch."""
        if self._timer is None or self._timer.when() < asyncio.get_running_loop().time():
            self._timer = asyncio.get_running_loop().call_later(_LINGER_S, self._changed.set)

    async def _pass(self, batch: FrameBatch) -> None:
        """Complete a batch, count it, answer it."""
        suspect = batch.arrivals[0] if batch.suspect else None
        if suspect is not None and self._suspects is not None:
            with self._suspects.retrying_alone(subjects.partition(suspect.device), suspect.sequence):
                outcomes, replies = await self._completed(batch)
        else:
            outcomes, replies = await self._completed(batch)
        poisoned = []
        for arrival, outcome, reply in zip(batch.arrivals, outcomes, replies, strict=True):
            if outcome.status != "ok":
                self.counters[outcome.status] += 1
            if outcome.poison:
                poisoned.append((arrival, outcome.poison, reply))
            else:
                await self._answer(arrival, reply)
        for arrival, why, reply in poisoned:  # last: the others need not wait until the broker has stored it
            with contextlib.suppress(*BROKER_ERRORS):
                await self._reply(arrival, reply)
            if not arrival.parts.dead:
                arrival.parts.dead = True
                await self._to_dead_letters(arrival.message, arrival.device, why)
        await self._run_in(self._counting, self._mixtures.catch_up, lambda: self._to_count > 0)

    async def _completed(self, batch: FrameBatch) -> tuple[list[Completion], list[Reply]]:
        try:
            decoded = await self._run_in(self._decoding, self._completer.decode, batch)
            outcomes, seconds = await self._run_in(self._torch, self._completer.complete, decoded)
        finally:
            self._completing -= 1
            self._changed.set()
        self._backlog.record_duration(batch, seconds)
        self.latency_ms["batch"].observe(seconds * 1e3)
        self._to_count += 1
        try:
            return outcomes, await self._run_in(self._counting, self._count, batch.arrivals, outcomes)
        finally:
            self._to_count -= 1

    def _count(self, arrivals: Sequence[Arrival], outcomes: Sequence[Completion]) -> list[Reply]:
        """In the counting thread: note each window once, keep it for training; the replies."""
        newest = self._generations.newest.number
        ids = [
            (arrival.device, arrival.boot, arrival.header.window)
            for arrival, outcome in zip(arrivals, outcomes, strict=True)
            if outcome.embedding is not None
        ]
        new = iter(self.ledger.add_all(ids))
        replies = []
        for arrival, outcome in zip(arrivals, outcomes, strict=True):
            if outcome.embedding is None:
                replies.append(_reply(arrival, newest, outcome.status))
                continue
            is_new = next(new)
            self.counters["windows" if is_new else "duplicates"] += 1
            if is_new and self._trainer is not None and outcome.activation is not None:
                self._trainer.add(arrival.window(outcome.activation, outcome.in_range))
            embedding = outcome.embedding.numpy()
            mixture = self._mixtures.add(arrival.device, embedding)
            replies.append(_reply(arrival, newest, "ok", embedding.astype("<f2").tobytes(), mixture))
        return replies

    async def _answer(self, arrival: Arrival, reply: Reply) -> None:
        parts = arrival.parts
        parts.tried += 1
        try:
            await self._reply(arrival, reply)
            parts.answered += 1
            if parts.answered == parts.windows:
                await arrival.message.ack()
                self.done[subjects.partition(arrival.device)] += 1
            self.latency_ms["reply"].observe((time.monotonic() - arrival.arrived) * 1e3)
        except BROKER_ERRORS as exc:
            # Not acknowledged: the broker delivers it again, and the ledger keeps it from counting twice.
            _LOG.debug("answer to %s: %s", arrival.device, reason(exc))
        finally:
            if parts.tried == parts.windows:
                self._held.release(arrival.message)

    async def _reply(self, arrival: Arrival, reply: Reply) -> None:
        inbox = (arrival.message.headers or {}).get(subjects.REPLY_HEADER)
        if inbox and subjects.is_reply(arrival.device, inbox):
            await self._hub.client.publish(inbox, encode_reply(reply, arrival.header.version))

    async def _deny(self, arrival: Arrival) -> None:
        """Refuse a frame of a device that sends too many."""
        if not self.counters["over_rate"] % 1000:
            _LOG.warning("%s sends too much: `ssc server device revoke` keeps it out", arrival.device)
        self.counters["over_rate"] += 1
        await self._answer(arrival, _reply(arrival, self._generations.newest.number, "refused"))

    async def _to_dead_letters(self, message: Msg, device: str, why: str) -> None:
        """Make a frame that can never be completed a dead letter; the broker does not redeliver it.

        Of a device that has many of them most are only counted: each keeps the others of the partition waiting.
        """
        try:
            if why and self._letters.allow(device):
                _LOG.warning("%s: %s; see `ssc server dead list`", message.subject, why)
                await dead_letters.store(self._hub.stream, message, device, why)
                self.counters["dead"] += 1
            await message.term()
            self.done[int(message.subject.split(".")[1])] += 1
        except BROKER_ERRORS as exc:
            _LOG.warning(
                "%s: cannot be kept as a dead letter (%s); the broker redelivers it", message.subject, reason(exc)
            )
            with contextlib.suppress(*BROKER_ERRORS):
                await message.nak(self._again_s)
        finally:
            self._held.release(message)

    async def _run_in(
        self,
        thread: ThreadPoolExecutor,
        call: Callable[_Arguments, _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(thread, functools.partial(call, *args, **kwargs))


def _reply(arrival: Arrival, newest: int, status: ReplyStatus, embedding: bytes = b"", mixture: bytes = b"") -> Reply:
    return Reply(
        window=arrival.header.window,
        generation=newest,
        status=status,
        server_us=int((time.monotonic() - arrival.arrived) * 1e6),
        embedding=embedding,
        mixture=mixture,
    )
