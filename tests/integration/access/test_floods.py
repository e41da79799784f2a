"""What one device can take of the broker by flooding it: others keep what is theirs."""

import asyncio

import harness
import nats

from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Address, Credentials
from runtime_server.broker.access import Access
from runtime_server.broker.hub import Hub

MIB = 1 << 20
STREAM_BYTES, FRAME_BYTES = 64 * MIB, 256 << 10


async def _quiet(exc):
    pass


def _connected(url, directory, name):
    options = Credentials(nkey=directory / f"{name}.creds").options(url)
    return nats.connect(url, error_cb=_quiet, inbox_prefix=subjects.inbox(name), allow_reconnect=False, **options)


def test_a_device_that_floods_the_stream_of_a_server_leaves_the_frames_of_others(start, tmp_path):
    server = start.server("--no-training", "--auth")
    access, devices = Access(server.state), [f"pi-{number}" for number in range(1, 5)]
    for name in (*devices, "flood"):
        (tmp_path / f"{name}.creds").write_text(access.add(name))
    assert access.reload()

    async def read(hub):
        infos = await hub.stream.consumers_info(subjects.STREAM)
        return not sum((info.num_pending or 0) + (info.num_ack_pending or 0) for info in infos)

    async def send(client, name, count, size):
        stream = client.jetstream(timeout=60.0)
        await asyncio.gather(*(stream.publish(subjects.frames(name), bytes(size)) for _ in range(count)))

    async def work():
        hub = Hub(Address(server.url, Credentials(nkey=server.state / "server.nkey")), "test")
        await hub.connect()
        config = (await hub.stream.stream_info(subjects.STREAM)).config
        await hub.stream.update_stream(config.evolve(max_bytes=STREAM_BYTES))
        for name in devices:
            client = await _connected(server.url, tmp_path, name)
            await send(client, name, 40, 4096)
            await client.close()
        flood = await _connected(server.url, tmp_path, "flood")
        for _ in range(3 * STREAM_BYTES // (2 * MIB)):
            await send(flood, "flood", 2 * MIB // FRAME_BYTES, FRAME_BYTES)
            await harness.eventually(lambda: read(hub))
        await flood.close()
        info = await hub.stream.stream_info(subjects.STREAM, subjects_filter="act.*.>")
        await hub.close()
        return info.state.subjects

    stored = asyncio.run(work())
    assert 0 < stored.pop(subjects.frames("flood")) * FRAME_BYTES < STREAM_BYTES
    assert stored == {subjects.frames(name): 40 for name in devices}
