"""What the protocols say around a window, counted on a real broker: it must not creep back."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import Reply, decode_frame, encode_frame, encode_replies, int8_embedding
from runtime_edge.transport.accounting import Accounting, LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.connection import Connection
from runtime_edge.transport.delivery import Delivery
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import Spool
from runtime_server.harness.relay import Relay
from runtime_server.training.mixtures import Mixtures

WINDOWS, DIM = 48, 384
PAYLOAD = np.random.default_rng(0).bytes(800)
"""So short that no ping goes in front."""
HOP_S = 0.5


async def answer_all(hub):
    """As a server does: one message for the windows of a frame, and the mixture where it is due."""
    mixtures, rng = Mixtures(), np.random.default_rng(1)

    async def on_frame(message):
        identity, inbox, asked = subjects.read_envelope(message.headers, message.subject)
        replies = []
        for header, _ in decode_frame(message.data):
            embedding = rng.standard_normal(DIM).astype(np.float32)
            embedding /= np.linalg.norm(embedding)
            mixture = mixtures.add("pi-1", embedding, identity, bool(inbox))
            written = int8_embedding(embedding) if asked == "embedding" else b""
            replies.append(Reply(header.window, 1, "ok", 9000, written, "int8", mixture))
        if inbox and (asked == "embedding" or any(reply.mixture for reply in replies)):
            await hub.client.publish(inbox, encode_replies(replies))

    await hub.subscribe("act.>", on_frame)


class Device:
    """Sends windows as a device does, over a relay that counts."""

    def __init__(self, connection, spool, worker, deadline_s):
        config = DeviceConfig("pi-1", "-", Path("unused"), "rpi4", deadline_ms=1e3 * deadline_s)
        self.store = FrameStore(spool, "pi-1.abcdefghijkl.", Accounting())
        self.uplink = BandwidthEstimator()
        self.delivery = Delivery(config, connection, self.store, worker, LoopCounts(), self.uplink)
        self._worker = worker

    async def send(self, windows, embedding):
        answers = []
        for window in windows:
            message_id = subjects.message_id("pi-1", "abcdefghijkl", window)
            at = 1_796_001_036_611_674_300 + int(window * HOP_S * 1e9)
            frame = encode_frame(window, at, 1, 1, "int8", False, 0.5, PAYLOAD, model=(1 << 64) - 1)
            await self._worker.run(self.store.put, message_id, window, frame, 0.5, True)
            if embedding:
                answers.append(asyncio.get_running_loop().create_future())
                done = answers[-1].set_result
                self.delivery.exchange(message_id, window, frame, 30.0, lambda reply, s, done=done: done(reply), HOP_S)
            else:
                self.delivery.report(message_id, window, frame, HOP_S)
        self.delivery.flush()
        replies = await asyncio.gather(*answers)
        await self.delivery.drain(30.0)
        return replies


@pytest.mark.parametrize(
    ("deadline_s", "together", "embedding", "most_up", "most_down"),
    [
        pytest.param(0.4, 1, True, 108, 65, id="prompt"),
        pytest.param(2.0, 4, True, 38, 20, id="packed"),
        pytest.param(0.4, 1, False, 127, 71, id="the device has the embedding"),
    ],
)
def test_what_surrounds_a_window_stays_small(
    play, broker, tmp_path, deadline_s, together, embedding, most_up, most_down
):
    async def work(hub):
        await answer_all(hub)
        relay = Relay(("127.0.0.1", broker.port))
        await relay.start()
        connection = Connection(f"nats://127.0.0.1:{relay.port}", "pi-1")
        await connection.connect()
        spool = Spool(tmp_path / "spool.db", 1 << 20)
        with Worker() as worker:
            device = Device(connection, spool, worker, deadline_s)
            for first in range(0, 8, together):  # what a connection begins with is said
                await device.send(range(first, first + together), embedding)
            before, replies = dict(relay.passed), []
            for first in range(8, 8 + WINDOWS, together):
                replies += await device.send(range(first, first + together), embedding)
            passed = {way: relay.passed[way] - before[way] for way in before}
            await device.delivery.close()
        spool.close()
        await connection.close()
        await relay.stop()
        return passed, replies

    passed, replies = play(work)
    assert len(replies) == (WINDOWS if embedding else 0)
    up = passed["up"] / WINDOWS - len(PAYLOAD)
    down = passed["down"] / WINDOWS - sum(len(reply.embedding) for reply in replies) / WINDOWS
    assert up <= most_up
    assert down <= most_down
