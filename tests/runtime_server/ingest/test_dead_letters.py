"""Dead letters on a real broker: what cannot be completed is kept with the reason, and the rest is served."""

import asyncio
import contextlib
import json
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from idle_stream import settled
from peers import Peer, make_streams, serving
from waiting import eventually

from runtime_edge.errors import UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import encode_frame
from runtime_server.broker.hub import Hub
from runtime_server.broker.streams import DEAD
from runtime_server.cli.server_commands import server
from runtime_server.ingest import dead_letters
from runtime_server.ingest.ingest import Ingest
from runtime_server.ingest.rate import RateLimit
from runtime_server.state import suspects
from runtime_server.state.ledger import Ledger
from runtime_server.state.suspects import Suspects

LOUD = 50.0
"""In an activation: what the suffixes of these tests cannot bear."""


@pytest.fixture
def poison(small_bundle):
    """`poison(window)`: a frame at cut 1 that decodes, and that breaks the suffix."""
    loud = np.full(small_bundle.manifest.info.cuts[1].shape, LOUD, "<f4").tobytes()
    return lambda window: encode_frame(window, 0, 1, 1, "float32", False, 0.5, loud)


def breaks(generations, monkeypatch, how):
    """Make the suffix of the newest generation do `how()` when a loud activation is among those it gets."""
    served = generations.newest.served
    complete = served.complete

    def picky(cut, activations):
        if float(activations.max()) >= LOUD:
            how()
        return complete(cut, activations)

    monkeypatch.setattr(served, "complete", picky)


async def three_letters(hub):
    return len(await dead_letters.newest(hub, 10)) == 3


def out_of_range():
    raise IndexError("index out of range in self")


def test_one_frame_that_breaks_the_suffix_is_put_away_and_its_batch_is_served(
    play, generations, sounds, frame_of, poison, monkeypatch
):
    breaks(generations, monkeypatch, out_of_range)

    async def work(hub):
        peer = await Peer(hub).listen()
        for window in range(24):
            await peer.send(poison(window) if window == 13 else frame_of(sounds[window], window, 1), window)
        async with serving(hub, generations) as ingest:
            replies = await peer.replies(24)
            await settled(hub)
            return replies, ingest.counters, ingest.ledger.counts(), await dead_letters.newest(hub, 10)

    replies, counters, counted, letters = play(work)
    assert [window for window, reply in sorted(replies.items()) if reply.status != "ok"] == [13]
    assert counters == {"windows": 23, "refused": 1, "dead": 1}
    assert counted == {"pi-1": 23}
    (letter,) = letters
    assert (letter.device, letter.message_id) == ("pi-1", "pi-1.boot.13")
    assert letter.reason == "IndexError: index out of range in self"
    assert letter.frame == poison(13)


def test_the_commands_show_and_remove_what_was_put_away(play, broker, generations, sounds, frame_of, tmp_path):
    damaged = frame_of(sounds[0], 7, 1)[:-1] + b"!"
    torn = encode_frame(8, 0, 1, 1, "float32", True, 0.5, b"no zstd")

    async def work(hub):
        peer = await Peer(hub).listen()
        await peer.send(damaged, 7)
        await peer.send(b"\xff" * 3000, 0, "evil \x1b[31m id", "act.0.no_device")
        await peer.send(torn, 8)
        async with serving(hub, generations):
            await peer.replies(1)
            await eventually(lambda: three_letters(hub))
            await settled(hub)

    def run(*arguments):
        result = CliRunner().invoke(server, ["dead", *arguments, "--broker", broker.url], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    play(work)
    listed = json.loads(run("list", "--json"))
    assert {row["device"] for row in listed} == {"pi-1", "_unknown"}
    by_bytes = {row["bytes"]: row for row in listed}
    assert "checksum" in by_bytes[len(damaged)]["reason"]
    assert by_bytes[3000]["reason"] == "no device publishes on this subject"
    assert "\x1b" not in run("list")
    assert len(json.loads(run("list", "--limit", "1", "--json"))) == 1
    number = str(by_bytes[len(torn)]["number"])
    shown = json.loads(run("show", number, "-o", str(tmp_path / "frame"), "--json"))
    assert "not a zstd frame" in shown["reason"]
    assert (shown["header"]["window"], shown["header"]["cut"]) == (8, 1)
    assert (tmp_path / "frame").read_bytes() == torn
    assert "checksum" in run("show", str(by_bytes[len(damaged)]["number"]))
    with pytest.raises(UsageError, match="dead letter 99: no such letter"):
        run("show", "99")
    assert json.loads(run("purge", "--device", "pi-1", "--json")) == {"removed": 2}
    assert [row["device"] for row in json.loads(run("list", "--json"))] == ["_unknown"]
    assert run("purge") == "1 dead letters removed\n"
    assert json.loads(run("list", "--json")) == []


def test_a_flood_of_garbage_fills_neither_the_stream_nor_the_log(play, generations):
    async def work(hub):
        peer = await Peer(hub).listen()
        for window in range(40):
            await peer.send(b"garbage", window)
        async with serving(hub, generations, rate=RateLimit(0.005, lambda: 0.0)) as ingest:
            await eventually(lambda: ingest.counters["garbage"] >= 40)
            await settled(hub)
            return ingest.counters, len(await dead_letters.newest(hub, 100))

    counters, letters = play(work)
    assert counters == {"garbage": 40, "dead": 5}
    assert letters == 5


def test_one_devices_garbage_makes_no_more_letters_than_are_kept_of_a_device(play, generations):
    async def work(hub):
        peer, other = await Peer(hub).listen(), await Peer(hub, "pi-3").listen()
        assert subjects.partition("pi-3") == subjects.partition("pi-1")
        for window in range(150):
            await peer.send(b"garbage", window)
        await other.send(b"garbage", 0)
        async with serving(hub, generations) as ingest:
            await eventually(lambda: ingest.counters["garbage"] >= 151)
            await settled(hub)
            return ingest.counters, len(await dead_letters.newest(hub, 1000))

    assert play(work) == ({"garbage": 151, "dead": 101}, 101)


def test_a_frame_that_cannot_be_put_away_comes_again(play, broker, generations):
    async def work(hub):
        peer = await Peer(hub).listen()
        await hub.stream.delete_stream(DEAD)
        await peer.send(b"garbage", 0)
        async with serving(hub, generations, again_s=0.5) as ingest:
            await eventually(lambda: ingest.counters["garbage"])
            await make_streams(broker.url)
            await eventually(lambda: ingest.counters["dead"])
            await settled(hub)
            return len(await dead_letters.newest(hub, 10))

    assert play(work) == 1


def test_a_frame_that_the_server_dies_of_is_found_out_and_no_other_suffers(
    play, broker, generations, sounds, frame_of, poison, monkeypatch, tmp_path
):
    hung, end = threading.Event(), threading.Event()

    def hang():
        hung.set()
        end.wait()

    breaks(generations, monkeypatch, hang)
    ledger = Ledger()

    async def life(tasks):
        """One server, until it dies (its thread hangs for ever and its connection ends) or everything is done."""
        hub = Hub(broker.url, "server")
        await hub.connect()
        hung.clear()
        blamed = Suspects(tmp_path, range(subjects.PARTITIONS))
        ingest = Ingest(hub, generations, None, ledger, suspects=blamed, ack_wait_s=1.0)
        tasks.append(asyncio.create_task(ingest.run(range(subjects.PARTITIONS))))
        await eventually(lambda: hung.is_set() or ingest.counters["dead"])
        if not hung.is_set():
            await settled(hub)
        await hub.close()
        return ingest.counters["dead"]

    async def work(hub):
        peer, other = Peer(hub), Peer(hub, "pi-2")
        for window in range(20):
            await peer.send(poison(window) if window == 6 else frame_of(sounds[window], window, 1), window)
            await other.send(frame_of(sounds[window], window, 2), window)
        tasks, lives = [], 1
        while not await life(tasks):
            lives += 1
        counted = ledger.counts()
        end.set()
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return lives, counted, await dead_letters.newest(hub, 10)

    lives, counted, (letter,) = play(work, 60.0)
    assert lives == suspects.DELIVERIES + 2
    assert letter.message_id == "pi-1.boot.6"
    assert letter.reason == "the server died while it completed this frame"
    assert counted == {"pi-1": 19, "pi-2": 20}
    assert not list(tmp_path.glob("*.trying"))
