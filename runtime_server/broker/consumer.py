"""Continuous pull from a durable JetStream consumer: messages as they arrive, with a bounded number outstanding."""

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
"""How long a request lasts. The broker (2.15) keeps a request with `max_bytes` until then, filled or not, and searches
all the kept ones for every message: with 30 s, each message took twice as long after a minute of 2000 messages a
second."""
_HEARTBEAT_S = 1.0
SILENCE_S = 3.0
"""After this long without a message or a heartbeat, the broker has forgotten the request (it was restarted)."""
ACK_WAIT_S = 10.0
"""How soon the messages of a process that died are delivered again. A living process tells the broker in time which
messages it is still working on, so that a long queue is not delivered twice."""
_MAX_BYTES = 32 << 20
_DAMAGED = 10012
"""The broker's error code for a consumer whose file it cannot read; no request removes that file."""
_SPARES = 3
_SHORT_REPLY = 9
"""The number of parts of a reply subject that names neither a domain nor an account."""


class ConsumerGoneError(nats.errors.Error):
    """The consumer no longer exists on the broker; the caller starts over, which creates it again."""


class Delivery(NamedTuple):
    """The broker's metadata about a message from the stream."""

    place: int
    """Its sequence number in the stream."""
    times: int
    """How often it was delivered, including this time."""


def delivery(message: Msg) -> Delivery:
    """Read the metadata from a message's reply subject. Raises NotJSMessageError.

    The library's own parser reads seven more fields, one of them a date.
    """
    tokens = message.reply.split(".")
    counts = 4 if len(tokens) == _SHORT_REPLY else 6  # after the names of the stream and its consumer
    try:
        return Delivery(place=int(tokens[counts + 1]), times=int(tokens[counts]))
    except (IndexError, ValueError):
        raise nats.errors.NotJSMessageError from None


class HeldMessages:
    """Messages in progress: the broker is told of them regularly, so that it does not redeliver them."""

    def __init__(self, ack_wait_s: float = ACK_WAIT_S) -> None:
        self.ack_wait_s = ack_wait_s
        """The time after which the broker redelivers a message unless it is told that the message is in progress."""
        self._messages: dict[str, tuple[float, Msg]] = {}

    def hold(self, message: Msg) -> None:
        """Keep telling the broker that this message is in progress."""
        self._messages[message.reply] = time.monotonic(), message

    def release(self, message: Msg) -> None:
        """Stop holding a message: it was answered, or the broker should redeliver it."""
        self._messages.pop(message.reply, None)

    def count(self, partition: int) -> int:
        """How many messages of a partition are in progress."""
        prefix = subjects.partition_filter(partition).removesuffix(">")
        return sum(message.subject.startswith(prefix) for _, message in self._messages.values())

    async def keep(self) -> None:
        """Tell the broker of the held messages until cancelled."""
        while True:
            await asyncio.sleep(self.ack_wait_s / 4)
            before = time.monotonic() - self.ack_wait_s / 4
            for message in [message for since, message in self._messages.values() if since < before]:
                with contextlib.suppress(*BROKER_ERRORS):
                    await message.in_progress()


class PullConsumer:
    """The durable consumer of one partition. Unlike the library's `fetch`, it does not wait for full batches."""

    def __init__(self, client: Client, partition: int, held: HeldMessages | None = None) -> None:
        """Each message is added to `held`; the reader releases it."""
        self._client, self._partition, self._held = client, partition, held or HeldMessages()
        self.name = f"server-{partition}"
        """The consumer's name on the broker."""
        self.refused = ""
        """Why the broker does not create the consumer; empty once it has."""

    async def _create(self) -> None:
        """Create the consumer unless it exists; if its file is damaged, one with another name replaces it.

        A new consumer gets every frame still in the stream; the ledger knows which of them were counted.
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
        """Messages of the partition, starting with those that were delivered before but never acknowledged.

        Raises ConsumerGoneError when the consumer no longer exists on the broker, and what the library raises.
        """
        await self._create()
        inbox, arrived = self._client.new_inbox(), asyncio.Queue[Msg]()

        async def on_message(message: Msg) -> None:
            if message.reply:  # the broker's own messages have no reply subject
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
                    if message.subject == inbox:  # a status from the broker itself
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
    """The number and text of a status from the broker."""
    headers = message.headers or {}
    return headers.get("Status", ""), headers.get("Description", "")
