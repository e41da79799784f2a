"""Continuous pull from a durable JetStream consumer: messages as they come, with a bounded number outstanding."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runtime_edge import subjects
from runtime_edge.broker import BROKER_ERRORS
from runtime_edge.tasks import cancel_all, next_within

_BATCH = 64
_EXPIRES_S = 30.0
_HEARTBEAT_S = 1.0
_SILENCE_S = 3.0
"""Without a message or a heartbeat for so long the broker has forgotten the request (it was restarted)."""
_ACK_WAIT_S = 10.0
"""What a process that dies leaves behind comes again after so long. One that lives tells the broker in time of the
messages it still has, so that a long queue is not delivered a second time."""
_MAX_BYTES = 32 << 20


class PullConsumer:
    """One partition's durable consumer. The library's `fetch` waits for full batches; this hands out at once."""

    def __init__(self, client: Client, partition: int) -> None:
        self._client = client
        self._partition = partition
        self._durable = f"server-{partition}"
        self._held: deque[tuple[float, weakref.ref[Msg]]] = deque()

    async def messages(self) -> AsyncIterator[Msg]:
        """Messages of the partition, those first that were delivered before but never acknowledged."""
        await self._client.jetstream().add_consumer(
            subjects.STREAM,
            ConsumerConfig(
                durable_name=self._durable,
                filter_subject=subjects.partition_filter(self._partition),
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=_ACK_WAIT_S,
                deliver_policy=DeliverPolicy.ALL,
                max_ack_pending=1024,
            ),
        )
        inbox, arrived = self._client.new_inbox(), asyncio.Queue[Msg]()

        async def on_message(message: Msg) -> None:
            self._held.append((time.monotonic(), weakref.ref(message)))
            await arrived.put(message)

        subscription = await self._client.subscribe(inbox, cb=on_message)
        keeper = asyncio.create_task(self._keep())
        request = json.dumps(
            {
                "batch": _BATCH,
                "max_bytes": _MAX_BYTES,
                "expires": int(_EXPIRES_S * 1e9),
                "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
            }
        ).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM}.{self._durable}"
        try:
            while True:
                outstanding = _BATCH
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
            await cancel_all([keeper])
            if not self._client.is_closed:
                await subscription.unsubscribe()

    async def _keep(self) -> None:
        """Tell the broker of messages that somebody here still has and has not answered."""
        while True:
            await asyncio.sleep(_ACK_WAIT_S / 4)
            overdue, now = [], time.monotonic()
            while self._held and now - self._held[0][0] > _ACK_WAIT_S / 4:
                message = self._held.popleft()[1]()
                if message is not None and message.reply and not message.is_acked:
                    overdue.append(message)
            for message in overdue:
                with contextlib.suppress(*BROKER_ERRORS):
                    await message.in_progress()
                self._held.append((now, weakref.ref(message)))
