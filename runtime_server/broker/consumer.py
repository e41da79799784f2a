"""Continuous pull from a durable JetStream consumer: messages as they come, with a bounded number outstanding."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runtime_edge.base.aio import next_within
from runtime_edge.base.broker_errors import BROKER_ERRORS
from runtime_edge.formats import subjects

BATCH = 64
"""Messages asked for at once."""
_EXPIRES_S = 3.0
"""Of a request. The broker (2.15) keeps one with `max_bytes` until then, filled or not, and looks through all that it
keeps with every message: with 30 s it took twice as long for each after a minute of 2000 messages a second."""
_HEARTBEAT_S = 1.0
_SILENCE_S = 3.0
"""Without a message or a heartbeat for so long the broker has forgotten the request (it was restarted)."""
ACK_WAIT_S = 10.0
"""What a process that dies leaves behind comes again after so long. One that lives tells the broker in time of the
messages it still has, so that a long queue is not delivered a second time."""
_MAX_BYTES = 32 << 20


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
        self._durable = f"server-{partition}"

    async def messages(self) -> AsyncIterator[Msg]:
        """Messages of the partition, those first that were delivered before but never acknowledged."""
        await self._client.jetstream().add_consumer(
            subjects.STREAM,
            ConsumerConfig(
                durable_name=self._durable,
                filter_subject=subjects.partition_filter(self._partition),
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._held.ack_wait_s,
                deliver_policy=DeliverPolicy.ALL,
                max_ack_pending=1024,
            ),
        )
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
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM}.{self._durable}"
        try:
            while True:
                outstanding = BATCH
                await self._client.publish(subject, request, inbox)
                while outstanding:
                    message = await next_within(arrived, _SILENCE_S)
                    if message is None:
                        break
                    if message.subject == inbox:  # the broker itself
                        if (message.headers or {}).get("Status") == "100":
                            continue  # a heartbeat
                        break  # the request has expired, or the broker is stopping: ask again
                    outstanding -= 1
                    yield message
        finally:
            while not arrived.empty():
                self._held.release(arrived.get_nowait())
            if not self._client.is_closed:
                await subscription.unsubscribe()
