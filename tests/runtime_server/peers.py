"""Devices as the broker sees them, and an ingest that serves them."""

from __future__ import annotations

import asyncio
import contextlib

from runtime_edge.base.aio import cancel_all
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import decode_replies
from runtime_server.broker.hub import Hub
from runtime_server.ingest.ingest import Ingest
from runtime_server.state.ledger import Ledger


class Peer:
    """A device as the broker sees it: publishes frames, collects answers."""

    def __init__(self, hub, name="pi-1", boot="boot"):
        self.hub, self.name, self.boot = hub, name, boot
        self.inbox, self.answers = f"{subjects.inbox(name)}.connection.0", asyncio.Queue()

    async def listen(self):
        async def on_answer(message):
            for reply in decode_replies(message.data):
                await self.answers.put(reply)

        await self.hub.client.subscribe(self.inbox, cb=on_answer)
        return self

    async def send(self, frame, window, message_id=None, subject=None, reply=None):
        headers = {
            subjects.IDENTITY_HEADER: message_id or subjects.message_id(self.name, self.boot, window),
            subjects.REPLY_HEADER: reply or self.inbox,
        }
        await self.hub.stream.publish(subject or subjects.frames(self.name), frame, headers=headers)

    async def replies(self, count):
        """By window."""
        found = [await asyncio.wait_for(self.answers.get(), 10.0) for _ in range(count)]
        return {reply.window: reply for reply in found}


@contextlib.asynccontextmanager
async def serving(hub, generations, trainer=None, partitions=range(subjects.PARTITIONS), rate=None, **options):
    ingest = Ingest(hub, generations, trainer, Ledger(), rate, **options)
    task = asyncio.create_task(ingest.run(partitions))
    try:
        yield ingest
    finally:
        await asyncio.wait_for(cancel_all([task]), 5.0)


async def make_streams(url):
    """Those that are not there, as a server that starts does."""
    hub = Hub(url, "start")
    await hub.connect(create=True)
    await hub.close()
