"""Ingest on a real broker: what comes back for each frame, what is counted, what never comes back."""

import nats.errors
import numpy as np
import pytest
import torch
from idle_stream import settled
from peers import Peer, serving
from toys import Tiny
from waiting import eventually

from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import decode_frame, encode_frame, encode_frames
from runtime_edge.policy.memory import GaussianMemory
from runtime_server.ingest.rate import RateLimit
from runtime_server.releases.release_gate import first_model
from runtime_server.training import mixtures
from runtime_server.training.trainer import TrainConfig, Trainer


def embedding(reply):
    return np.frombuffer(reply.embedding, "<f2").astype(np.float32)


def test_a_burst_over_all_cuts_of_the_newest_generation_and_two_behind_gives_the_torch_embeddings(
    play, generations, tiny_encoder, numbered, sounds, frame_of
):
    def changed(change):
        return {
            name: change(value) if name.startswith("head") else value for name, value in tiny_encoder.tensors.items()
        }

    generations.add(numbered(2), changed(np.negative))
    generations.add(numbered(3), changed(lambda value: np.roll(value, 1, axis=0)))
    with torch.no_grad():
        first = Tiny()(torch.from_numpy(sounds)).numpy()
    expected = {1: first, 2: -first, 3: np.roll(first, 1, axis=1)}

    async def work(hub):
        peer = await Peer(hub).listen()
        for window, sound in enumerate(sounds):
            await peer.send(frame_of(sound, window, window % 4, generation=1 + window % 3), window)
        async with serving(hub, generations) as ingest:
            replies = await peer.replies(len(sounds))
            await settled(hub)
            return replies, ingest.counters, ingest.ledger.counts()

    replies, counters, counted = play(work)
    assert counters == {"windows": len(sounds)}
    assert counted == {"pi-1": len(sounds)}
    for window, reply in replies.items():
        assert (reply.status, reply.generation) == ("ok", 3)
        assert np.abs(embedding(reply) - expected[1 + window % 3][window]).max() < 2e-3  # float16


def test_garbage_is_counted_and_never_comes_back(play, generations, sounds, frame_of):
    good = frame_of(sounds[0], 7, 1)
    damaged = good[:-1] + bytes([good[-1] ^ 1])

    async def work(hub):
        peer = await Peer(hub).listen()
        garbage = [
            (b"", 0, None, None),
            (b"\xff" * 300, 1, None, None),
            (damaged, 7, None, None),
            (good, 7, "pi-1.boot.8", None),
            (good, 7, "pi-2.boot.7", None),
            (good, 7, "pi-1.boot", None),
            (good, 7, "pi-1..7", None),
            (good, 7, "pi-1.boot.07", None),
            (good, 7, f"pi-1.{'x' * 33}.7", None),
            (good, 7, "Pi.boot.7", "act.0.Pi"),
            (good, 7, "pi-1.other.7", f"act.{(subjects.partition('pi-1') + 1) % subjects.PARTITIONS}.pi-1"),
            (good, 7, "pi-1.another.7", f"act.{subjects.partition('pi-1')}.x.pi-1"),
        ]
        for frame, window, message_id, subject in garbage:
            await peer.send(frame, window, message_id, subject)
        await peer.send(good, 7, "pi-1.good.7")
        async with serving(hub, generations) as ingest:
            replies = await peer.replies(1)
            await settled(hub)
            return replies, len(garbage), ingest.counters, ingest.ledger.counts()

    replies, sent, counters, counted = play(work)
    assert replies[7].status == "ok"
    assert counters == {"garbage": sent, "dead": sent, "windows": 1}
    assert counted == {"pi-1": 1}


def test_frames_that_cannot_be_completed_are_told_so(play, generations, tiny_encoder, numbered, sounds, frame_of):
    for number in range(2, 7):
        generations.add(numbered(number), tiny_encoder.tensors)
    huge = np.full((1, 8, 127), 3e38, "<f4").tobytes()

    async def work(hub):
        peer = await Peer(hub).listen()
        frames = [
            frame_of(sounds[0], 0, 1, generation=1),  # retired
            frame_of(sounds[0], 1, 1, generation=99),  # never released
            frame_of(sounds[0], 2, 1, generation=6),
            encode_frame(3, 0, 6, 9, "float32", False, 0.5, b""),  # no such cut
            encode_frame(4, 0, 6, 1, "float32", False, 0.5, b"12"),  # too short
            encode_frame(5, 0, 6, 1, "float32", True, 0.5, b"no zstd"),
            encode_frame(6, 0, 6, 1, "float32", False, 0.5, huge),  # finite, but its embedding is not
            frame_of(sounds[1], 7, 1, generation=6),
        ]
        for window, frame in enumerate(frames):
            await peer.send(frame, window)
        async with serving(hub, generations) as ingest:
            replies = await peer.replies(len(frames))
            await settled(hub)
            return replies, ingest.counters, ingest.ledger.counts()

    replies, counters, counted = play(work)
    statuses = [replies[window].status for window in sorted(replies)]
    assert statuses == ["retired", "refused", "ok", "refused", "refused", "refused", "refused", "ok"]
    assert all(reply.generation == 6 for reply in replies.values())
    assert not any(reply.embedding for reply in replies.values() if reply.status != "ok")
    assert counters == {"retired": 1, "refused": 5, "dead": 4, "windows": 2}
    assert counted == {"pi-1": 2}


def test_a_window_that_comes_again_counts_once(play, generations, sounds, frame_of):
    frame = frame_of(sounds[0], 0, 1)

    async def work(hub):
        peer = await Peer(hub).listen()
        rebooted = Peer(hub, boot="later")
        async with serving(hub, generations) as ingest:
            for _ in range(3):
                await peer.send(frame, 0)
            await rebooted.send(frame, 0)
            await settled(hub)
            return await peer.replies(3), ingest.counters, ingest.ledger.counts()

    replies, counters, counted = play(work)
    assert replies[0].status == "ok", "a repetition is answered like the first"
    assert counters == {"windows": 2, "duplicates": 2}
    assert counted == {"pi-1": 2}


def test_a_stream_that_has_gone_on_takes_what_comes_again(play, generations, sounds):
    front = generations.get(1).bundle.manifest.info.front_end
    encoder = AudioStreamEncoder("pcm16-stream", front.sample_rate, front.window_samples, front.hop_samples, 16.0)
    frames = [
        encode_frame(window, 0, 1, 0, "pcm16-stream", False, 0.5, encoder.encode(sounds[window], window, False))
        for window in range(4)
    ]

    async def work(hub):
        peer = await Peer(hub).listen()
        async with serving(hub, generations) as ingest:
            for window in (0, 1, 2, 1, 0, 3):
                await peer.send(frames[window], window)
                await settled(hub)
            return ingest.counters, ingest.ledger.counts()

    counters, counted = play(work)
    assert counted == {"pi-1": 4}
    assert counters == {"windows": 4, "refused": 1, "duplicates": 1}, "and no dead letter"


def test_answers_go_to_the_devices_own_inbox_only(play, generations, sounds, frame_of):
    async def work(hub):
        overheard = []

        async def on_message(message):
            overheard.append(message.subject)

        for subject in ("evt.>", "act.>", "srv.>", "_INBOX.pi-2.>", "_INBOX.pi-1.>"):
            await hub.subscribe(subject, on_message)
        peer = Peer(hub)
        wrong = ("evt.pi-2", "act.0.pi-2", "srv.status", "_INBOX", "_INBOX.pi-2.connection.0", "_INBOX.pi-1.a.b")
        invalid = ("_INBOX.pi-1.>", "_INBOX.pi-1.*.1", "_INBOX.pi-1. .1", "_INBOX.pi-1..1", "_INBOX.pi-1.a.1.2")
        async with serving(hub, generations):
            for window, reply in enumerate((*wrong, *invalid)):
                await peer.send(frame_of(sounds[0], window, 1), window, reply=reply)
            await settled(hub)
            return overheard

    assert play(work) == [subjects.frames("pi-1")] * 11


def test_a_device_that_floods_is_refused_and_the_others_are_served(play, generations, sounds, frame_of):
    async def work(hub):
        flood, other = await Peer(hub).listen(), await Peer(hub, "pi-2").listen()
        async with serving(hub, generations, rate=RateLimit(0.02, lambda: 0.0)) as ingest:
            for window in range(25):
                await flood.send(frame_of(sounds[window], window, 1), window)
            await other.send(frame_of(sounds[0], 0, 1), 0)
            replies, others = await flood.replies(25), await other.replies(1)
            await settled(hub)
            return [replies[window].status for window in range(25)], others[0].status, ingest.counters

    statuses, other, counters = play(work)
    assert statuses == ["ok"] * 20 + ["refused"] * 5
    assert other == "ok"
    assert counters == {"windows": 21, "over_rate": 5}


def test_every_so_many_windows_the_mixture_comes_along(play, generations, sounds, frame_of, monkeypatch):
    monkeypatch.setattr(mixtures, "T_SYNC", 20)

    async def work(hub):
        peer, other = await Peer(hub).listen(), await Peer(hub, "pi-2").listen()
        async with serving(hub, generations):
            for window, sound in enumerate(sounds[:45]):
                await peer.send(frame_of(sound, window, 1), window)
            await other.send(frame_of(sounds[0], 0, 1), 0)
            return await peer.replies(45), await other.replies(1)

    replies, others = play(work)
    carried = sorted(window for window, reply in replies.items() if reply.mixture)
    assert len(carried) == 2
    assert not others[0].mixture
    memory = GaussianMemory(dim=6)
    memory.load_parameters(replies[carried[1]].mixture)
    assert not memory.cold


def test_the_trainer_gets_every_window_once_with_its_activation(play, generations, sounds, frame_of, activation):
    model = first_model(generations.graph, generations.newest)
    trainer = Trainer(model, TrainConfig(), 6)

    async def work(hub):
        peer = await Peer(hub).listen()
        async with serving(hub, generations, trainer):
            for window in range(16):
                await peer.send(frame_of(sounds[window], window, 2), window)
            await peer.send(frame_of(sounds[3], 3, 2), 3, "pi-1.again.3")
            await peer.send(frame_of(sounds[3], 99, 4), 99)  # an embedding: nothing behind it to train
            await peer.replies(18)

    play(work)
    kept = {(w.boot, w.index): w for b in (trainer.buffer, trainer.held_out) for w in b.windows("pi-1")}
    assert set(kept) == {("boot", window) for window in range(16)} | {("again", 3)}
    for (_, index), window in kept.items():
        assert window.cut == 2
        assert np.allclose(window.activation.numpy(), activation(sounds[index], 2), atol=2e-3)


def test_a_window_out_of_range_is_completed_and_answered_but_trains_nothing(play, generations, sounds, frame_of):
    trainer = Trainer(first_model(generations.graph, generations.newest), TrainConfig(), 6)

    async def work(hub):
        peer = await Peer(hub).listen()
        async with serving(hub, generations, trainer):
            await peer.send(frame_of(sounds[0], 0, 0), 0)
            await peer.send(frame_of(1000 * sounds[1], 1, 0), 1)
            await peer.send(frame_of(1000 * sounds[1], 2, 2), 2)
            return await peer.replies(3)

    assert [reply.status for reply in play(work).values()] == ["ok"] * 3
    assert [w.index for b in (trainer.buffer, trainer.held_out) for w in b.windows("pi-1")] == [0]
    assert trainer.out_of_range() == {"pi-1": 2}


@pytest.mark.parametrize("partitions", [[0], [0, 1, 2, 3]])
def test_a_server_serves_the_partitions_it_was_given(play, generations, sounds, frame_of, partitions):
    names = [f"pi-{number}" for number in range(12)]
    served = {name for name in names if subjects.partition(name) in partitions}

    async def work(hub):
        async with serving(hub, generations, partitions=partitions) as ingest:
            for name in sorted(names, key=served.__contains__):  # those that it serves come last
                await Peer(hub, name).send(frame_of(sounds[0], 0, 1), 0)
            await eventually(lambda: served <= set(ingest.ledger.counts()))
            return ingest.ledger.counts()

    assert set(play(work)) == served


def test_a_frame_whose_answer_cannot_be_sent_comes_again(play, generations, sounds, frame_of, monkeypatch):
    async def work(hub):
        peer = await Peer(hub).listen()
        publish, refused = hub.client.publish, []

        async def failing_once(subject, *arguments, **options):
            if subject == peer.inbox and not refused:
                refused.append(subject)
                raise nats.errors.ConnectionClosedError
            await publish(subject, *arguments, **options)

        monkeypatch.setattr(hub.client, "publish", failing_once)
        await peer.send(frame_of(sounds[0], 7, 1), 7)
        async with serving(hub, generations, ack_wait_s=1.0) as ingest:
            (reply,) = (await peer.replies(1)).values()
            await settled(hub)
            return refused, reply, ingest.counters

    refused, reply, counters = play(work)
    assert len(refused) == 1
    assert (reply.window, reply.status) == (7, "ok")
    assert counters == {"windows": 1, "duplicates": 1}


def test_all_windows_of_one_frame_are_answered_and_the_frame_is_acknowledged_once(play, generations, sounds, frame_of):
    alone = [frame_of(sound, window, 1) for window, sound in enumerate(sounds[:3], start=7)]
    together = encode_frames([window for frame in alone for window in decode_frame(frame)])

    async def work(hub):
        peers = [await Peer(hub, name).listen() for name in ("pi-1", "pi-2")]
        await peers[0].send(together, 7)
        for window, frame in enumerate(alone, start=7):
            await peers[1].send(frame, window)
        async with serving(hub, generations) as ingest:
            found = [await peer.replies(3) for peer in peers]
            await settled(hub)
            return found, ingest.counters, ingest.ledger.counts()

    (packed, single), counters, counted = play(work)
    assert counters == {"windows": 6}
    assert counted == {"pi-1": 3, "pi-2": 3}
    assert {window: reply.embedding for window, reply in packed.items()} == {
        window: reply.embedding for window, reply in single.items()
    }


def test_a_frame_with_windows_that_cannot_be_completed_is_one_dead_letter_and_the_rest_is_served(
    play, generations, sounds, frame_of
):
    (good,) = decode_frame(frame_of(sounds[0], 7, 1))
    bad = [(good[0]._replace(window=window), b"12") for window in (8, 9)]
    together = encode_frames([good, *bad])

    async def work(hub):
        peer = await Peer(hub).listen()
        await peer.send(together, 7)
        async with serving(hub, generations) as ingest:
            replies = await peer.replies(3)
            await settled(hub)
            return replies, ingest.counters

    replies, counters = play(work)
    assert {window: reply.status for window, reply in replies.items()} == {7: "ok", 8: "refused", 9: "refused"}
    assert counters == {"windows": 1, "refused": 2, "dead": 1}
