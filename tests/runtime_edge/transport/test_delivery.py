"""Delivery between a real spool and a broker in memory: exactly once in the accounts, whatever the broker does."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import eventually

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import Reply
from runtime_edge.transport.accounting import Accounting, LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.delivery import Delivery
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.transport.protocol import FRAME_OVERHEAD_BYTES
from runtime_edge.transport.spool.spool import Spool


@pytest.fixture
def spool(tmp_path):
    opened = Spool(tmp_path / "spool.db", 1 << 20)
    yield opened
    opened.close()


def echo(window, frame):
    return Reply(window, 1, "ok", 5, frame)


class Sender:
    """What a device hands its frames over through, of boot "new" of device pi-1."""

    def __init__(self, transport, spool, worker, **settings):
        config = DeviceConfig("pi-1", "-", Path("unused"), "rpi4", **{"ack_timeout_s": 30.0} | settings)
        self.accounting, self.counts, self._worker = Accounting(), LoopCounts(), worker
        self.uplink = BandwidthEstimator()
        self.frame_store = FrameStore(spool, "pi-1.new.", self.accounting)
        self.delivery = Delivery(config, transport, self.frame_store, worker, self.counts, self.uplink)

    async def spooled(self, window, claim=False):
        """As the device does: in the thread that owns the frame store."""
        message_id, frame = subjects.message_id("pi-1", "new", window), b"frame %d" % window
        await self._worker.run(self.frame_store.put, message_id, window, frame, 0.5, claim)
        return message_id, frame

    async def exchange(self, window, deadline_s=60.0):
        message_id, frame = await self.spooled(window, claim=True)
        answered = asyncio.get_running_loop().create_future()
        self.delivery.exchange(message_id, window, frame, deadline_s, lambda *answer: answered.set_result(answer))
        reply, _ = await answered
        return reply


@contextlib.asynccontextmanager
async def sending(transport, spool, replay=True, **settings):
    with Worker() as worker:
        sender = Sender(transport, spool, worker, **settings)
        tasks = [asyncio.create_task(sender.delivery.replay_forever())] if replay else []
        try:
            yield sender
        finally:
            await cancel_all(tasks)
            await sender.delivery.close()


def store(spool, boot, windows):
    for window in windows:
        spool.put(subjects.message_id("pi-1", boot, window), window, b"frame %d" % window, 0.5)


def test_the_spool_of_an_earlier_boot_is_sent_and_answers_no_window_of_this_one(spool):
    store(spool, "old", range(6))
    answers = []

    async def work():
        transport = InMemoryTransport(echo)
        transport.on_late_reply(answers.append)
        async with sending(transport, spool) as sender:
            for window in range(6):
                transport.expect(window, 30.0, answers.append)
            await sender.delivery.drain(60.0)
            return transport, sender.accounting, sender.counts

    transport, accounting, counts = asyncio.run(work())
    assert answers == []
    assert (accounting.acked, counts.replayed, accounting.inherited) == (0, 6, 0)
    assert len(transport.frames) == transport.sent == 6


def test_live_frames_are_answered_and_leave_the_spool_once_stored(spool):
    async def work():
        transport = InMemoryTransport(echo)
        async with sending(transport, spool) as sender:
            replies = await asyncio.gather(*(sender.exchange(window) for window in range(12)))
            await sender.delivery.drain(60.0)
            return [reply.embedding for reply in replies], sender, transport

    embeddings, sender, transport = asyncio.run(work())
    assert embeddings == [b"frame %d" % window for window in range(12)]
    assert (sender.accounting.acked, sender.counts.replayed) == (12, 0)
    assert len(transport.frames) == 12
    assert spool.depth() == 0


def test_an_answer_that_does_not_come_is_none_and_one_that_is_late_goes_elsewhere(spool):
    late = []

    async def work():
        transport = InMemoryTransport()
        transport.on_late_reply(late.append)
        async with sending(transport, spool) as sender:
            reply = await sender.exchange(3, deadline_s=0.01)
            transport.reply(echo(3, b"late"))
            return reply, sender.uplink.loss

    reply, loss = asyncio.run(work())
    assert reply is None
    assert loss > 0
    assert [reply.embedding for reply in late] == [b"late"]


def test_a_broker_that_goes_away_again_and_again_gets_every_frame_once(spool):
    store(spool, "old", range(5))

    async def work():
        transport = InMemoryTransport()
        async with sending(transport, spool) as sender:
            for window in range(30):
                if window % 10 == 3:
                    transport.disconnect()
                if window % 10 == 6:
                    transport.reconnect()
                if sender.delivery.has_room():
                    await sender.exchange(window, 0.001)
                else:
                    await sender.spooled(window)
                    sender.delivery.replay_soon()
            await sender.delivery.drain(60.0)
            return transport, sender.accounting

    transport, accounting = asyncio.run(work())
    assert accounting.acked == accounting.captured == 30
    assert accounting.inherited == 0
    assert len(transport.frames) == 35
    assert spool.depth() == 0


def test_a_bandwidth_probe_follows_a_frame_that_is_alone(spool):
    async def work():
        transport, sent = InMemoryTransport(), []
        async with sending(transport, spool, replay=False) as sender:
            for frames in (0, 1, 2):
                claimed = [await sender.spooled(10 * frames + number, claim=True) for number in range(frames)]
                for number, (message_id, frame) in enumerate(claimed):
                    sender.delivery.exchange(message_id, 10 * frames + number, frame, 1.0, lambda *answer: None)
                await sender.delivery.bandwidth_probe(8, 512)
                await sender.delivery.drain(60.0)
                sent.append((transport.filler_bytes, sender.counts.bytes_sent))
            return transport, sent, sender.uplink.rtt_ms

    transport, ((no_filler, idle), (filler, alone), (same_filler, crowded)), rtt_ms = asyncio.run(work())
    one = len(b"frame 10") + FRAME_OVERHEAD_BYTES
    assert len(transport.frames) == 3, "filler is not stored"
    assert (no_filler, idle) == (0, 0)
    assert filler >= 512
    assert alone == one + filler
    assert (same_filler, crowded) == (filler, alone + 2 * one)
    assert rtt_ms != 50, "it was assumed until then"


def test_a_replay_under_way_does_not_stop_the_wait_for_room(spool):
    store(spool, "old", range(3))

    async def work():
        transport = InMemoryTransport()
        async with sending(transport, spool, in_flight=1) as sender:
            for window in range(5):
                await sender.delivery.wait_for_room()
                assert sender.delivery.has_room()
                await sender.exchange(window, 0.001)
            await sender.delivery.drain(60.0)
        return len(transport.frames)

    assert asyncio.run(work()) == 8


def test_draining_gives_up_in_time_and_closing_keeps_what_was_not_stored(spool):
    async def work():
        transport = InMemoryTransport()
        transport.stores = False
        async with sending(transport, spool, ack_timeout_s=600.0) as sender:
            await sender.exchange(0, 0.001)
            await asyncio.wait_for(sender.delivery.drain(0.1), 30.0)
        return sender.accounting

    assert asyncio.run(work()).acked == 0
    assert spool.depth() == 1


@pytest.mark.integration
def test_a_disk_that_fails_does_not_end_the_replay(tmp_path, caplog):
    spool = Spool(tmp_path / "spool" / "spool.db", 1 << 20)
    store(spool, "old", range(3))

    async def work():
        transport = InMemoryTransport()
        async with sending(transport, spool, replay=False) as sender:
            spool.close()  # from now on every call raises SpoolError
            replay = asyncio.create_task(sender.delivery.replay_forever())
            await eventually(lambda: len(caplog.records) > 2 or replay.done())
            assert not replay.done()
            sender.frame_store.spool = mended = Spool(tmp_path / "spool" / "spool.db", 1 << 20)
            await eventually(lambda: len(transport.frames) == 3)
            await sender.delivery.drain(60.0)
            await cancel_all([replay])
        mended.close()

    asyncio.run(work())


def test_once_answers_come_they_are_the_acknowledgements_and_the_broker_is_asked_now_and_then(spool):
    async def work():
        transport = InMemoryTransport(echo)
        async with sending(transport, spool) as sender:
            for window in range(24):
                await sender.exchange(window)
            await sender.delivery.drain(60.0)
            return transport, sender.accounting, sender.counts

    transport, accounting, counts = asyncio.run(work())
    assert transport.acknowledged == 10, "the first eight, and one in eight"
    assert (accounting.acked, counts.replayed, accounting.undecided) == (24, 0, 0)
    assert counts.stage_ms["publish"].count == 24
    assert spool.depth() == 0


@given(st.lists(st.sampled_from(["answered", "server away", "frame lost", "link lost"]), min_size=1, max_size=25))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_becomes_of_answers_every_frame_is_stored_and_leaves_the_spool_once(tmp_path, happens):
    happens = ["answered"] * 9 + happens
    answers = []

    async def work(spool):
        transport = InMemoryTransport(lambda window, frame: echo(window, frame) if answers[-1] else None)
        async with sending(transport, spool, ack_timeout_s=0.02, deadline_ms=10.0) as sender:
            for window, what in enumerate(happens):
                answers.append(what == "answered")
                transport.stores = what != "frame lost"
                if what == "link lost":
                    transport.disconnect()
                if sender.delivery.has_room():
                    await sender.exchange(window, 0.001 if what != "answered" else 60.0)
                else:
                    await sender.spooled(window)
                    sender.delivery.replay_soon()
                transport.stores = True
                transport.reconnect()
            await sender.delivery.drain(60.0)
            return transport, sender.accounting

    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        opened = Spool(Path(directory) / "spool.db", 1 << 20)
        transport, accounting = asyncio.run(work(opened))
        depth = opened.depth()
        opened.close()
    assert accounting.acked == accounting.captured == len(transport.frames) == len(happens)
    assert depth == accounting.undecided == sum(accounting.dropped.values()) == 0


def test_a_late_answer_is_looked_into_by_one_bandwidth_probe_and_the_broker_is_asked_next(spool):
    late = asyncio.Event()

    class Slow(InMemoryTransport):
        """Answers come two seconds later than the server says, once `late` is set."""

        def send(self, message_id, window, frame, on_stored, timeout_s=10.0, embedding=True, by_answer=False):
            slow = late.is_set() and by_answer
            super().send(
                message_id, window, frame, (lambda said: on_stored(2.0)) if slow else on_stored,
                timeout_s, embedding, by_answer,
            )  # fmt: skip

    async def work():
        transport = Slow(echo)
        async with sending(transport, spool) as sender:
            for window in range(10):
                await sender.exchange(window)
            sender.uplink.observe(100_000, 0.01)
            before, asked = sender.uplink.uplink_mbits, transport.acknowledged
            late.set()
            for window in range(10, 13):
                await sender.exchange(window)
            await sender.delivery.drain(60.0)
            return transport, asked, before, sender.uplink.uplink_mbits

    transport, asked, before, after = asyncio.run(work())
    assert transport.filler_bytes == len(b"frame 10") + FRAME_OVERHEAD_BYTES
    assert transport.acknowledged == asked + 1
    assert after > before / 2, "two seconds for so few bytes are no word of the link"
