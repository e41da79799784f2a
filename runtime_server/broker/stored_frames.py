"""Reads frames from the broker's stream again, without acknowledging any."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from datetime import datetime

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runtime_edge.formats import subjects
from runtime_server.broker.hub import Hub

_PATIENCE_S = 10.0
_FORGET_S = 60.0
"""How long the broker remembers a reader that is gone."""


async def stored_frames(hub: Hub, subject: str, start: int | datetime, size: int) -> AsyncGenerator[list[Msg], None]:
    """The messages that are stored now, up to `size` at a time, starting at a sequence number or a time.

    Close the generator if not all are read (`contextlib.aclosing`). Raises what the library raises.
    """
    place, time = (start, None) if isinstance(start, int) else (None, start)
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE,
        deliver_policy=DeliverPolicy.BY_START_TIME if place is None else DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=place,
        opt_start_time=time,
        inactive_threshold=_FORGET_S,
        mem_storage=True,
    )
    subscription = await hub.stream.pull_subscribe(subject, stream=subjects.STREAM, config=config)
    left: float = math.inf
    try:
        # Asked again each time: the stream grows meanwhile, and its limits remove messages that were not read yet.
        while left := min(left, (await subscription.consumer_info()).num_pending or 0):
            messages = await subscription.fetch(int(min(size, left)), timeout=_PATIENCE_S)
            left -= len(messages)
            yield messages
    finally:
        await subscription.unsubscribe()
