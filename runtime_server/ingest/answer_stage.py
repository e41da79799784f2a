"""The last stage of the ingest: answers frames and acknowledges them, or makes them dead letters."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Sequence

from nats.aio.msg import Msg

from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.base.histogram import Histogram
from runtime_edge.formats.wire import Reply, encode_replies, encode_reply
from runtime_server.broker.consumer import HeldMessages
from runtime_server.broker.hub import Hub
from runtime_server.ingest import dead_letters
from runtime_server.ingest.arrival import Arrival
from runtime_server.ingest.batches import CountedBatch
from runtime_server.ingest.rate import RateLimit

_LOG = logging.getLogger(__name__)
AGAIN_S = 5.0


class AnswerStage:
    """Runs on the event loop. Owns the counters of outcomes, and the answers that each message still needs.

    Args:
        hub: the connection to the broker.
        held: messages in progress; each is released here.
        again_s: how soon the broker redelivers a frame that could not be stored as a dead letter.
    """

    def __init__(self, hub: Hub, held: HeldMessages, again_s: float = AGAIN_S) -> None:
        self.counters: Counter[str] = Counter()
        """Frames by outcome."""
        self.done: Counter[int] = Counter()
        """Messages of each partition that need no redelivery: they are acknowledged, or dead letters."""
        self.reply_ms = Histogram()
        """Time from a frame's arrival to its answer."""
        self._hub, self._held, self._again_s = hub, held, again_s
        self._letters = RateLimit(dead_letters.PER_S)

    async def answer(self, counted: CountedBatch) -> None:
        """Answer every frame of a batch and count its outcome; one that can never be completed is a dead letter."""
        self._add("windows", counted.windows)
        self._add("duplicates", counted.duplicates)
        poisoned = []
        frames = zip(counted.batch.arrivals, counted.completions, counted.replies, strict=True)
        for arrival, completion, reply in frames:
            if completion.status != "ok":
                self._add(completion.status, 1)
            if completion.poison:
                poisoned.append((arrival, completion.poison, reply))
            else:
                await self._answer(arrival, reply)
        for arrival, why, reply in poisoned:  # last: the others need not wait until the broker has stored it
            arrival.parts.tried += 1
            arrival.parts.replies.append(reply)
            if arrival.parts.tried == arrival.parts.windows:
                with contextlib.suppress(*BROKER_ERRORS):
                    await self._publish(arrival, arrival.parts.replies)
            if not arrival.parts.dead:
                arrival.parts.dead = True
                await self.put_away(arrival.message, arrival.device, why)

    async def deny(self, arrival: Arrival, newest: int) -> None:
        """Refuse a frame of a device that sends too many; `newest` is the generation that the answer names."""
        if not self.counters["over_rate"] % 1000:
            _LOG.warning("%s sends too much: `ssc server device revoke` keeps it out", arrival.device)
        self._add("over_rate", 1)
        await self._answer(arrival, arrival.reply(newest, "refused"))

    async def put_away(self, message: Msg, device: str, why: str) -> None:
        """Make a frame that can never be completed a dead letter; the broker does not redeliver it.

        If a device has many such frames, most of them are only counted: storing one delays the rest of the partition.
        """
        try:
            if why and self._letters.allow(device):
                _LOG.warning("%s: %s; see `ssc server dead list`", message.subject, why)
                await dead_letters.store(self._hub.stream, message, device, why)
                self._add("dead", 1)
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

    async def put_away_garbage(self, message: Msg, device: str, why: str) -> None:
        """Count a message that is not a frame, and make it a dead letter."""
        self._add("garbage", 1)
        await self.put_away(message, device, why)

    async def _answer(self, arrival: Arrival, reply: Reply) -> None:
        """Add the reply to one window; the last one of a message sends them all and acknowledges it."""
        parts = arrival.parts
        parts.tried += 1
        parts.replies.append(reply)
        try:
            if parts.tried == parts.windows:
                await self._publish(arrival, parts.replies)
            parts.answered += 1
            if parts.answered == parts.windows:
                await arrival.message.ack()
                self.done[arrival.partition] += 1
            self.reply_ms.observe((time.monotonic() - arrival.arrived) * 1e3)
        except BROKER_ERRORS as exc:
            # Not acknowledged: the broker delivers it again, and the ledger prevents counting it twice.
            _LOG.debug("answer to %s: %s", arrival.device, reason(exc))
        finally:
            if parts.tried == parts.windows:
                self._held.release(arrival.message)

    async def _publish(self, arrival: Arrival, replies: Sequence[Reply]) -> None:
        """Publish the answers to the windows of one message, grouped by outcome."""
        wanted = [reply for reply in replies if arrival.is_wanted(reply)]
        if arrival.header.version == 1:
            data = [encode_reply(reply, 1) for reply in wanted]
        else:
            alike: dict[tuple[object, ...], list[Reply]] = {}
            for reply in wanted:
                alike.setdefault((reply.generation, reply.status, reply.encoding), []).append(reply)
            data = [encode_replies(some) for some in alike.values()]
        for answer in data:
            await self._hub.client.publish(arrival.inbox, answer)

    def _add(self, outcome: str, frames: int) -> None:
        if frames:  # an outcome that never occurred has no counter
            self.counters[outcome] += frames
