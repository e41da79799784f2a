"""The stream of frames on a real broker: who fills it makes room by its own frames, and nobody else's go."""

import asyncio
import contextlib
from collections import Counter

import pytest
from waiting import eventually

from runtime_edge.base.aio import cancel_all
from runtime_edge.formats import subjects
from runtime_server.broker.consumer import PullConsumer, delivery
from runtime_server.broker.stream_shares import StreamShares

MIB = 1 << 20
STREAM_BYTES = 32 * MIB
CALM, FLOOD = ("pi-1", "pi-2", "pi-3"), "pi-9"


class Stream:
    """A small stream of which everything is read, as a server does."""

    def __init__(self, hub):
        self.hub, self.shares, self.sent, self.read = hub, StreamShares(hub), Counter(), Counter()

    @contextlib.asynccontextmanager
    async def reading(self):
        config = (await self.hub.stream.stream_info(subjects.STREAM)).config
        await self.hub.stream.update_stream(config.evolve(max_bytes=STREAM_BYTES))
        tasks = [asyncio.create_task(self._read(number)) for number in range(subjects.PARTITIONS)]
        try:
            yield self
        finally:
            await cancel_all(tasks)

    async def _read(self, partition):
        async for message in PullConsumer(self.hub.client, partition).messages():
            self.shares.note(message.subject, delivery(message).place, len(message.data))
            await message.ack()
            self.read[message.subject] += 1

    async def send(self, device, count, size):
        """Frames, no faster than they are read; then the stream is looked at."""
        subject = subjects.frames(device)
        await asyncio.gather(*(self.hub.stream.publish(subject, bytes(size)) for _ in range(count)))
        self.sent[subject] += count
        await eventually(lambda: self.read[subject] >= self.sent[subject])
        await self.shares.look()

    async def stored(self):
        """Frames that are there, by device."""
        info = await self.hub.stream.stream_info(subjects.STREAM, subjects_filter="act.>")
        return {subject.rsplit(".", 1)[-1]: count for subject, count in (info.state.subjects or {}).items()}


@pytest.mark.parametrize("size", [16 << 10, 1 << 20])
def test_a_device_that_fills_the_stream_pushes_out_its_own_frames_alone(play, size):
    async def work(hub):
        async with Stream(hub).reading() as stream:
            for device in CALM:
                await stream.send(device, 20, 1 << 10)
            for _ in range(48):
                await stream.send(FLOOD, 2 * MIB // size, size)
            return await stream.stored(), stream.shares.removed

    found, removed = play(work, timeout_s=120.0)
    assert 0 < found.pop(FLOOD) * size < 7 / 8 * STREAM_BYTES
    assert removed > 2 * STREAM_BYTES
    assert found == dict.fromkeys(CALM, 20)


def test_devices_that_are_alike_are_left_to_the_broker(play):
    async def work(hub):
        async with Stream(hub).reading() as stream:
            for _ in range(16):
                for device in CALM:
                    await stream.send(device, 1, MIB)
            return await stream.stored(), stream.shares.removed

    found, removed = play(work, timeout_s=120.0)
    assert removed == 0
    assert max(found.values()) - min(found.values()) <= 1, "the oldest frames made room, whoever sent them"


def test_fewer_than_half_that_flood_together_leave_the_others_their_frames(play):
    async def work(hub):
        async with Stream(hub).reading() as stream:
            for device in CALM:
                await stream.send(device, 30, 64 << 10)
            for _ in range(24):
                for device in ("pi-8", "pi-9"):
                    await stream.send(device, 2, MIB)
            return await stream.stored()

    found = play(work, timeout_s=120.0)
    assert {device: found[device] for device in CALM} == dict.fromkeys(CALM, 30)
