"""A server that serves nobody says so and what to do, and mends what it can: on a real broker, and on a full disk."""

import asyncio
import contextlib
import os
import threading

import nats.errors
import pytest
from peers import serving
from waiting import eventually

from runtime_edge.base.broker_errors import BROKER_ERRORS
from runtime_edge.formats import subjects
from runtime_server.broker.broker_process import FULL_BYTES
from runtime_server.broker.hub import Hub
from runtime_server.server import Server
from runtime_server.serving.server_config import ServerConfig
from runtime_server.serving.server_status import ServerStatus
from runtime_server.telemetry.service_watch import STALLED_S, ServiceWatch
from tools.small_disk import small_disk

NAME = "pi-1"
PARTITION = subjects.partition(NAME)
CONSUMER = f"server-{PARTITION}"
pytestmark = pytest.mark.integration


async def send(hub, frame, window):
    headers = {subjects.IDENTITY_HEADER: subjects.message_id(NAME, "boot", window)}
    await hub.stream.publish(subjects.frames(NAME), frame, headers=headers)


@pytest.fixture
def life(tiny_encoder, small_bundle, tmp_path, free_port):
    """`life(work)` runs `await work(its parts, hub)` while a whole server runs; returns its last status."""

    def run(work):
        async def running():
            config = ServerConfig(small_bundle.path, tmp_path / "server", port=free_port, training=False)
            server = Server(tiny_encoder, config)
            started = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(server.run(started.set_result))
            await eventually(lambda: started.done() or task.done())
            if task.done():
                task.result()
            hub = Hub(server.url, "test")
            await hub.connect()
            try:
                await work(started.result(), hub)
            finally:
                await hub.close()
                server.stop()
                status = await task
            return status

        return asyncio.run(running())

    return run


async def told(server, words):
    async def found():
        return next((trouble for trouble in await ServerStatus(server).troubles() if words in trouble), None)

    return await eventually(found, f"a trouble with {words!r}")


async def well(server):
    async def no_trouble():
        return not await ServerStatus(server).troubles()

    await eventually(no_trouble)


async def served(server, hub, count):
    async def enough():
        return (await hub.server_status())["windows"].get(NAME, 0) >= count

    await eventually(enough)


def test_a_consumer_that_was_deleted_is_made_again_and_nothing_counts_twice(life, sounds, frame_of):
    async def work(server, hub):
        for window in range(3):
            await send(hub, frame_of(sounds[window], window, 1), window)
        await served(server, hub, 3)
        await hub.stream.delete_consumer(subjects.STREAM, CONSUMER)
        await send(hub, frame_of(sounds[3], 3, 1), 3)
        await served(server, hub, 4)
        await eventually(lambda: server.ingest.counters["duplicates"] == 3)
        await well(server)

    status = life(work)
    assert status["windows"] == {NAME: 4}
    assert status["counters"] == {"windows": 4, "duplicates": 3}


def test_a_consumer_that_is_gone_and_not_read_is_a_trouble(play, generations):
    async def work(hub):
        async with serving(hub, generations, partitions=[PARTITION]) as ingest:
            await eventually(lambda: PARTITION in ingest.consumers)
            watch = ServiceWatch(hub, ingest, range(subjects.PARTITIONS))
            return await watch.look()

    found = play(work)
    unread = [p for p in range(subjects.PARTITIONS) if p != PARTITION]
    named = f"partitions {unread[0]}, {unread[1]} and {unread[2]} are not served: nothing on the broker reads"
    assert len(found) == 1
    assert found[0].startswith(named)


@pytest.mark.parametrize(
    "damaged", [f"obs/{CONSUMER}/o.dat", f"obs/{CONSUMER}/meta.inf", "meta.inf", "msgs/index.db", "msgs/1.blk"]
)
@pytest.mark.parametrize("how", ["garbage", "short"])
def test_a_damaged_store_is_mended_and_frames_are_served_again(life, tmp_path, sounds, frame_of, damaged, how):
    async def work(server, hub):
        for window in range(3):
            await send(hub, frame_of(sounds[window], window, 1), window)
        await served(server, hub, 3)
        await eventually_settled(hub)
        await server.broker.stop()  # and its keeper starts it again
        (path,) = (tmp_path / "server").rglob(f"{subjects.STREAM}/{damaged}")
        content = path.read_bytes()
        path.write_bytes(os.urandom(len(content)) if how == "garbage" else content[: len(content) // 2])
        await eventually(lambda: server.hub.client.is_connected and hub.client.is_connected)

        async def sent():
            with contextlib.suppress(*BROKER_ERRORS):
                await send(hub, frame_of(sounds[3], 3, 1), 3)
                return True

        await eventually(sent)
        await served(server, hub, 4)
        await well(server)

    assert life(work)["windows"] == {NAME: 4}


async def eventually_settled(hub):
    async def settled():
        info = await hub.stream.consumer_info(subjects.STREAM, CONSUMER)
        return not info.num_pending and not info.num_ack_pending

    await eventually(settled)


def test_a_stream_that_was_deleted_is_told_and_made_again(life, sounds, frame_of):
    async def work(server, hub):
        await hub.stream.delete_stream(subjects.STREAM)
        trouble = await told(server, f"the stream {subjects.STREAM} is gone")
        assert "made again" in trouble
        await well(server)
        await send(hub, frame_of(sounds[0], 0, 1), 0)
        await served(server, hub, 1)

    life(work)


def test_frames_that_nobody_completes_are_a_trouble_whatever_holds_them(play, generations, sounds, frame_of):
    async def work(hub):
        now, free = [0.0], threading.Event()
        async with serving(hub, generations, partitions=[PARTITION]) as ingest:
            await eventually(lambda: PARTITION in ingest.consumers)
            watch = ServiceWatch(hub, ingest, [PARTITION], clock=lambda: now[0])
            with held_torch(generations, free):
                await send(hub, frame_of(sounds[0], 0, 1), 0)
                await eventually(lambda: ingest.in_progress(PARTITION) == 1)
                first = await watch.look()
                now[0] += STALLED_S
                stalled = await watch.look()
                free.set()
                await eventually(lambda: ingest.done[PARTITION] == 1)
                return first, stalled, await watch.look()

    first, stalled, after = play(work)
    assert (first, after) == ([], [])
    (trouble,) = stalled
    assert trouble.startswith(f"partition {PARTITION} is not served: 1 frames wait and none was done for 6 s")


@contextlib.contextmanager
def held_torch(generations, free):
    """Whoever asks for a generation waits, as a thread that hangs does."""
    get = generations.get

    def waits(number):
        free.wait(60)
        return get(number)

    generations.get = waits
    try:
        yield
    finally:
        free.set()
        generations.get = get


@pytest.fixture(name="small_disk")
def small_disk_of_96_mb(tmp_path):
    """With the server's state."""
    path = tmp_path / "server"
    path.mkdir()
    with small_disk(path, 96) as mounted:
        if not mounted:
            pytest.skip("a small file system cannot be mounted here: root is needed")
        yield path


def test_a_full_disk_is_told_and_service_goes_on_by_itself_once_there_is_room(life, small_disk, sounds, frame_of):
    async def work(server, hub):
        await send(hub, frame_of(sounds[0], 0, 1), 0)
        await served(server, hub, 1)
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        full = await told(server, "is full")
        assert "make room" in full
        assert full in (await hub.server_status())["troubles"]
        with pytest.raises(nats.errors.TimeoutError):
            await send(hub, os.urandom(200_000), 1)
        ballast.unlink()

        async def sent():
            with contextlib.suppress(*BROKER_ERRORS):
                await send(hub, frame_of(sounds[1], 2, 1), 2)
                return True

        await eventually(sent)
        await served(server, hub, 2)
        await well(server)

    assert FULL_BYTES < 32 << 20, "the small disk would count as full from the start"
    life(work)


def test_a_stream_that_takes_nothing_is_a_trouble_and_the_broker_is_started_again(play, generations):
    async def work(hub):
        now, asked = [0.0], []
        async with serving(hub, generations) as ingest:
            await eventually(lambda: len(ingest.consumers) == subjects.PARTITIONS)

            async def mend():
                """Nothing is gone."""

            watch = ServiceWatch(
                hub, ingest, range(subjects.PARTITIONS), mend, lambda: asked.append(1), clock=lambda: now[0]
            )
            now[0] = 60.0
            before = await watch.look()
            config = (await hub.stream.stream_info(subjects.STREAM)).config
            await hub.stream.update_stream(config.evolve(subjects=["other.>"]))  # nobody stores frames any more
            now[0] = 120.0
            once, was_asked = await watch.look(), bool(asked)
            twice = await watch.look()
            return before, once, was_asked, twice, bool(asked)

    before, once, was_asked, twice, is_asked = play(work)
    assert before == []
    assert all("the broker stores no frames" in " ".join(found) for found in (once, twice))
    assert (was_asked, is_asked) == (False, True)
