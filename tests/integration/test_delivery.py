"""Delivery between a real spool and a real broker: exactly once in the accounts, whatever the broker does."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from waiting import eventually

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import Reply, encode_reply
from runtime_edge.transport.accounting import Accounting, LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.connection import Connection
from runtime_edge.transport.delivery import Delivery
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import Spool
from runtime_server.broker.hub import Hub


@pytest.fixture
def spool(tmp_path):
    opened = Spool(tmp_path / "spool.db", 1 << 20)
    yield opened
    opened.close()


class Opened(Delivery):
    """With what a device hands its frames over through."""

    def __init__(self, config, connection, frame_store, worker):
        self.frame_store, self.worker, self.counts = frame_store, worker, LoopCounts()
        super().__init__(config, connection, frame_store, worker, self.counts, BandwidthEstimator())


@contextlib.asynccontextmanager
async def delivering(broker, spool, replay=True, **settings):
    """(delivery, link, accounting) of boot "new" of device pi-1."""
    config = DeviceConfig("pi-1", "-", Path("unused"), "rpi4", **{"ack_timeout_s": 30.0} | settings)
    connection, accounting = Connection(broker.url, "pi-1"), Accounting()
    await connection.connect()
    with Worker() as worker:
        delivery = Opened(config, connection, FrameStore(spool, "pi-1.new.", accounting), worker)
        tasks = [asyncio.create_task(delivery.replay_forever())] if replay else []
        try:
            yield delivery, connection, accounting
        finally:
            await cancel_all(tasks)
            await delivery.close()
            await connection.close()


def store(spool, boot, windows):
    for window in windows:
        spool.put(subjects.message_id("pi-1", boot, window), window, b"frame %d" % window, 0.5)


async def spooled(delivery, window, claim=False):
    """As the device does: in the thread that owns the frame store."""
    message_id, frame = subjects.message_id("pi-1", "new", window), b"frame %d" % window
    await delivery.worker.run(delivery.frame_store.put, message_id, window, frame, 0.5, claim)
    if not claim:
        delivery.replay_soon()
    return message_id, frame


async def exchange(delivery, window, deadline_s=60.0):
    message_id, frame = await spooled(delivery, window, claim=True)
    answered = asyncio.get_running_loop().create_future()
    delivery.exchange(message_id, window, frame, deadline_s, lambda *answer: answered.set_result(answer))
    return await answered


async def stored(hub):
    return (await hub.stream.stream_info(subjects.STREAM)).state.messages


async def answer_all(hub):
    async def on_frame(message):
        inbox = subjects.read_envelope(message.headers, message.subject).reply
        if inbox:
            window = int(inbox.rsplit(".", 1)[-1])
            await hub.client.publish(inbox, encode_reply(Reply(window, 1, "ok", 5, message.data)))

    await hub.subscribe("act.>", on_frame)


def test_live_frames_are_answered_and_leave_the_spool_once_stored(play, broker, spool):
    async def work(hub):
        await answer_all(hub)
        async with delivering(broker, spool) as (delivery, _, accounting):
            replies = await asyncio.gather(*(exchange(delivery, window) for window in range(12)))
            await delivery.drain(60.0)
            return [reply.embedding for reply, _ in replies], accounting, delivery.counts, await stored(hub)

    embeddings, accounting, counts, messages = play(work)
    assert embeddings == [b"frame %d" % window for window in range(12)]
    assert (accounting.acked, counts.replayed) == (12, 0)
    assert messages == 12
    assert spool.depth() == 0


def test_a_broker_that_dies_again_and_again_gets_every_frame_once(play, broker, spool):
    store(spool, "old", range(20))

    async def work(hub):
        async with delivering(broker, spool, ack_timeout_s=0.5) as (delivery, _, accounting):
            for window in range(90):
                if window % 30 == 5:
                    await broker.stop()
                if window % 30 == 8:
                    await broker.start()
                if delivery.has_room():
                    await exchange(delivery, window, 0.08)
                else:
                    await spooled(delivery, window)
            await delivery.drain(60.0)
            await eventually(lambda: hub.client.is_connected)
            return accounting, await stored(hub)

    accounting, messages = play(work)
    assert accounting.acked == accounting.captured == 90
    assert accounting.inherited == 0
    assert messages == 110
    assert spool.depth() == 0


def test_a_broker_without_our_stream_is_not_hammered(broker, spool):
    store(spool, "old", range(5))

    async def work():
        heard = []

        async def on_frame(message):
            heard.append(message.subject)

        other = Hub(broker.url, "test")
        await other.connect()
        await other.subscribe("act.>", on_frame)
        async with delivering(broker, spool, ack_timeout_s=1.0) as (delivery, _, _):
            await delivery.drain(1.0)
            sent = delivery.counts.replayed
        await other.close()
        return heard, sent

    heard, sent = asyncio.run(work())
    assert 1 <= len(heard) <= 8
    assert sent == 0
    assert spool.depth() == 5
