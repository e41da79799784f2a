"""Continuous pull from a durable JetStream consumer: messages as they come, with a bounded number outstanding."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runtime_edge import subjects
from runtime_edge.tasks import next_within

_BATCH = 64
_EXPIRES_S = 30.0
_HEARTBEAT_S = 1.0
_SILENCE_S = 3.0
"""Without a message or a heartbeat for so long the broker has forgotten the request (it was restarted)."""
_ACK_WAIT_S = 10.0


class PullConsumer:
    """One partition's durable consumer. The library's `fetch` waits for full batches; this hands out at once."""

    def __init__(self, client: Client, partition: int) -> None:
        self._client = client
        self._partition = partition
        self._durable = f"server-{partition}"

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
        subscription = await self._client.subscribe(inbox, cb=arrived.put)
        request = json.dumps(
            {"batch": _BATCH, "expires": int(_EXPIRES_S * 1e9), "idle_heartbeat": int(_HEARTBEAT_S * 1e9)}
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
            if not self._client.is_closed:
                await subscription.unsubscribe()
