"""Continuous pull from a durable JetStream consumer: messages as they come, with a bounded number outstanding."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runtime_edge.base.aio import next_within
from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.formats import subjects

_LOG = logging.getLogger(__name__)
BATCH = 64
"""Messages asked for at once."""
_EXPIRES_S = 3.0
"""Of a request. The broker (2.15) keeps one with `max_bytes` until then, filled or not, and looks through all that it
keeps with every message: with 30 s it took twice as long for each after a minute of 2000 messages a second."""
_HEARTBEAT_S = 1.0
SILENCE_S = 3.0
"""Without a message or a heartbeat for so long the broker has forgotten the request (it was restarted)."""
ACK_WAIT_S = 10.0
"""What a process that dies leaves behind comes again after so long. One that lives tells the broker in time of the
messages it still has, so that a long queue is not delivered a second time."""
_MAX_BYTES = 32 << 20
_DAMAGED = 10012
"""The broker's number for a consumer whose file it cannot read; no request removes that file."""
_SPARES = 3
_SHORT_REPLY = 9
"""Parts of a reply subject that names neither a domain nor an account."""


class ConsumerGoneError(nats.errors.Error):
    """The consumer is no longer on the broker; whoever reads it starts over, which makes it again."""


class Delivery(NamedTuple):
    """The broker's metadata of a message from the stream."""

    place: int
    """In the stream."""
    times: int
    """That it was handed out, with this one."""


def delivery(message: Msg) -> Delivery:
    """As its reply subject has it. Raises NotJSMessageError. The library reads seven more fields, with a date."""
    tokens = message.reply.split(".")
    counts = 4 if len(tokens) == _SHORT_REPLY else 6  # behind the names of the stream and its consumer
    try:
        return Delivery(place=int(tokens[counts + 1]), times=int(tokens[counts]))
    except (IndexError, ValueError):
        raise nats.errors.NotJSMessageError from None


class HeldMessages:
    """Messages in progress: the broker is told regularly, so that it does not redeliver them."""

    def __init__(self, ack_wait_s: float = ACK_WAIT_S) -> None:
        self.ack_wait_s = ack_wait_s
        """What the broker delivers again after so long, unless it is told."""
        self._messages: dict[str, tuple[float, Msg]] = {}

    def hold(self, message: Msg) -> None:
        """Keep a message in progress from now on."""
        self._messages[message.reply] = time.monotonic(), message

    def release(self, message: Msg) -> None:
        """Stop holding a message: it was answered, or the broker shall redeliver it."""
        self._messages.pop(message.reply, None)

    def count(self, partition: int) -> int:
        """How many messages of a partition are in progress."""
        prefix = subjects.partition_filter(partition).removesuffix(">")
        return sum(message.subject.startswith(prefix) for _, message in self._messages.values())

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.ack_wait_s / 4)
            before = time.monotonic() - self.ack_wait_s / 4
            for message in [message for since, message in self._messages.values() if since < before]:
                with contextlib.suppress(*BROKER_ERRORS):
                    await message.in_progress()


class PullConsumer:
    """One partition's durable consumer. The library's `fetch` waits for full batches; this hands out at once."""

    def __init__(self, client: Client, partition: int, held: HeldMessages | None = None) -> None:
        """Messages are added to `held`; the reader releases each."""
        self._client, self._partition, self._held = client, partition, held or HeldMessages()
        self.name = f"server-{partition}"
        """Of the consumer on the broker."""
        self.refused = ""
        """Why the broker does not make it; empty once it has."""

    async def _create(self) -> None:
        """Make the consumer unless it is there; where its file is damaged, one with another name takes its place.

        A new one gets every frame that the stream still has; the ledger knows which were counted.
        """
        names = [f"server-{self._partition}", *(f"server-{self._partition}-{spare + 1}" for spare in range(_SPARES))]
        for self.name in names:
            config = ConsumerConfig(
                durable_name=self.name,
                filter_subject=subjects.partition_filter(self._partition),
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._held.ack_wait_s,
                deliver_policy=DeliverPolicy.ALL,
                max_ack_pending=1024,
            )
            try:
                await self._client.jetstream().add_consumer(subjects.STREAM, config)
                self.refused = ""
                return
            except nats.js.errors.APIError as exc:
                if exc.err_code != _DAMAGED or self.name == names[-1]:
                    self.refused = reason(exc)
                    raise
                _LOG.warning("the broker's consumer %s is damaged; another takes its place", self.name)

    async def messages(self) -> AsyncIterator[Msg]:
        """Messages of the partition, those first that were delivered before but never acknowledged.

        Raises ConsumerGoneError when the broker no longer has the consumer, and what the library raises.
        """
        await self._create()
        inbox, arrived = self._client.new_inbox(), asyncio.Queue[Msg]()

        async def on_message(message: Msg) -> None:
            if message.reply:  # the broker's own words have none
                self._held.hold(message)
            await arrived.put(message)

        subscription = await self._client.subscribe(inbox, cb=on_message)
        request = json.dumps(
            {
                "batch": BATCH,
                "max_bytes": _MAX_BYTES,
                "expires": int(_EXPIRES_S * 1e9),
                "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
            }
        ).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM}.{self.name}"
        try:
            while True:
                outstanding = BATCH
                await self._client.publish(subject, request, inbox)
                while outstanding:
                    message = await next_within(arrived, SILENCE_S)
                    if message is None:
                        break
                    if message.subject == inbox:  # the broker itself
                        status, text = _status(message)
                        if status == "100":
                            continue  # a heartbeat
                        if status == "503" or "Deleted" in text:
                            raise ConsumerGoneError(f"the broker's consumer {self.name} is gone; it is made again")
                        break  # the request has expired, or the broker is stopping: ask again
                    outstanding -= 1
                    yield message
        finally:
            while not arrived.empty():
                self._held.release(arrived.get_nowait())
            if not self._client.is_closed:
                await subscription.unsubscribe()


def _status(message: Msg) -> tuple[str, str]:
    """A word of the broker: its number and its text."""
    headers = message.headers or {}
    return headers.get("Status", ""), headers.get("Description", "")
