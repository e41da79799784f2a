"""Reading a real broker's stream again: the same training, each window once, within bounds."""

import asyncio
import contextlib

import numpy as np
import pytest
import torch
from peers import make_streams
from waiting import eventually

from runtime_edge.audio.wire_streams import AudioStreamEncoder
from runtime_edge.base.aio import cancel_all
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import encode_frame
from runtime_server.ingest.frame_replay import FrameReplay, ReplayConfig
from runtime_server.ingest.ingest import Ingest
from runtime_server.ingest.rate import RateLimit
from runtime_server.releases.release_gate import first_model
from runtime_server.state.ledger import Ledger
from runtime_server.training.checkpoint import Checkpoints
from runtime_server.training.trainer import TrainConfig, Trainer

ALL = range(subjects.PARTITIONS)
DEVICES = ("pi-1", "pi-2", "pi-3", "pi-4", "pi-5")
assert len({subjects.partition(name) for name in DEVICES}) > 2


@pytest.fixture
def trainer_of(generations):
    def make(**config):
        model = first_model(generations.graph, generations.newest)
        return Trainer(model, TrainConfig(**{"batch": 8, "min_windows": 8, "learning_rate": 1e-3, **config}), 6)

    return make


@pytest.fixture
def send(sounds, frame_of):
    """`send(hub, windows)` for (device, boot, window) at mixed cuts, the last of them an embedding."""

    async def publish(hub, windows):
        for device, boot, window in windows:
            frame = frame_of(sounds[(window + len(device + boot)) % len(sounds)], window, window % 5)
            headers = {subjects.IDENTITY_HEADER: subjects.message_id(device, boot, window)}
            await hub.stream.publish(subjects.frames(device), frame, headers=headers)

    return publish


@contextlib.asynccontextmanager
async def ingesting(hub, generations, trainer, ledger):
    task = asyncio.create_task(Ingest(hub, generations, trainer, ledger, RateLimit(1000.0)).run(ALL))
    try:
        yield
    finally:
        await asyncio.wait_for(cancel_all([task]), 5.0)


async def counted(ledger, count):
    await eventually(lambda: sum(ledger.counts().values()) >= count, what=f"{count} windows counted")


def held(trainer):
    """Every window that trains or judges, with what it holds."""
    return {
        (w.device, w.boot, w.index): (w.sequence, w.cut, w.uncertainty, w.activation.numpy().tobytes())
        for buffer in (trainer.buffer, trainer.held_out)
        for device in DEVICES
        for w in buffer.windows(device)
    }


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.module.state_dict().items()}


def streams(count, boot="b0"):
    return [(device, boot, window) for window in range(count) for device in DEVICES]


def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(play, generations, trainer_of, send, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", "tiny")

    async def work(hub):
        trainer, ledger = trainer_of(), Ledger()
        # Three boots of which two stay, windows that slide out, and gaps.
        given = [*streams(10, "old"), *streams(40, "b1")[::2], *streams(200, "b2")[::3]]
        await send(hub, given)
        async with ingesting(hub, generations, trainer, ledger):
            await counted(ledger, len(given))
        before = await FrameReplay(hub, generations, trainer, ledger).run(ALL)
        for _ in range(7):
            trainer.step()
        checkpoints.save(trainer)
        kept = held(trainer)
        whole = [trainer.step().losses for _ in range(6)]

        resumed = trainer_of()
        assert checkpoints.load(resumed)
        assert len(resumed.to_reread) == len(kept)
        outcome = await FrameReplay(hub, generations, resumed, ledger).run(ALL)
        return trainer, whole, kept, before, outcome, resumed

    trainer, whole, kept, before, outcome, resumed = play(work, 60)
    assert before.taken == before.put_back == 0, "what is taken is not taken again"
    assert (outcome.put_back, outcome.taken, outcome.missing) == (len(kept), 0, 0)
    assert 50 < len(kept) < before.skipped["known"]
    assert held(resumed) == kept
    assert resumed.steps == 7
    assert [resumed.step().losses for _ in range(6)] == whole
    expected, found = weights(trainer), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    averaged = resumed.averaged_tensors()
    assert all(np.array_equal(value, averaged[name]) for name, value in trainer.averaged_tensors().items())
    assert resumed.judge([resumed.model]) == trainer.judge([trainer.model])
    assert resumed.memory.to_bytes() == trainer.memory.to_bytes()


def test_without_a_checkpoint_the_counted_windows_train_again(play, generations, trainer_of, send):
    async def work(hub):
        trainer, ledger = trainer_of(), Ledger()
        await send(hub, streams(30))
        async with ingesting(hub, generations, trainer, ledger):
            await counted(ledger, 5 * 30)
        fresh = trainer_of()
        await send(hub, [("pi-1", "b0", window) for window in range(30, 40)])  # nobody has counted these
        return trainer, fresh, await FrameReplay(hub, generations, fresh, ledger).run(ALL)

    trainer, fresh, outcome = play(work)
    assert outcome.taken == 5 * 30
    assert outcome.skipped == {"uncounted": 10}
    assert held(fresh) == held(trainer)
    assert fresh.ready


def test_windows_after_the_checkpoint_are_taken_and_those_before_are_not_learnt_twice(
    play, generations, trainer_of, send, tmp_path
):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", "tiny")

    async def work(hub):
        trainer, ledger = trainer_of(), Ledger()
        await send(hub, streams(20))
        async with ingesting(hub, generations, trainer, ledger):
            await counted(ledger, 5 * 20)
        await FrameReplay(hub, generations, trainer, ledger).run(ALL)
        checkpoints.save(trainer)
        await send(hub, streams(32)[5 * 20 :])
        async with ingesting(hub, generations, trainer, ledger):
            await counted(ledger, 5 * 32)
        resumed = trainer_of()
        checkpoints.load(resumed)
        return trainer, resumed, await FrameReplay(hub, generations, resumed, ledger).run(ALL)

    trainer, resumed, outcome = play(work)
    assert (outcome.put_back, outcome.taken) == (5 * 20 - 5 * 4, 5 * 12), "embeddings are not kept"
    assert held(resumed) == held(trainer)


def test_beside_live_ingest_each_window_teaches_once(play, generations, trainer_of, send):
    async def work(hub):
        ledger = Ledger()
        await send(hub, streams(30))
        async with ingesting(hub, generations, None, ledger):
            await counted(ledger, 5 * 30)
        trainer = trainer_of()
        replay = FrameReplay(hub, generations, trainer, ledger.snapshot())
        await send(hub, streams(60)[5 * 30 :])
        async with ingesting(hub, generations, trainer, ledger):
            again = [("pi-1", "b0", window) for window in range(20)]
            outcome, _ = await asyncio.gather(replay.run(ALL), send(hub, [*streams(80)[5 * 60 :], *again]))
            await counted(ledger, 5 * 80)
        return trainer, outcome

    trainer, outcome = play(work)
    assert outcome.taken == 5 * 30
    assert set(held(trainer)) == {(device, boot, window) for device, boot, window in streams(80) if window % 5 != 4}


def test_it_is_bounded_by_frames_bytes_and_age(play, generations, trainer_of, send):
    async def work(hub):
        ledger = Ledger()
        await send(hub, streams(20))
        async with ingesting(hub, generations, None, ledger):
            await counted(ledger, 100)
        state = (await hub.stream.stream_info(subjects.STREAM)).state
        found = {}
        for name, config in {
            "frames": ReplayConfig(max_frames=30),
            "bytes": ReplayConfig(max_bytes=state.bytes // 2),
            "age": ReplayConfig(max_age_s=0.0),
            "off": ReplayConfig(max_frames=0),
        }.items():
            found[name] = await FrameReplay(hub, generations, trainer_of(), ledger, config).run(ALL)
        part = await FrameReplay(hub, generations, trainer_of(), ledger).run([subjects.partition("pi-1")])
        return found, part

    found, part = play(work)
    assert found["frames"].taken == 30
    assert 45 <= found["bytes"].taken <= 50
    assert (found["age"].taken, found["age"].skipped) == (0, {"old": 100})
    assert found["off"].read == 0
    own = [device for device in DEVICES if subjects.partition(device) == subjects.partition("pi-1")]
    assert part.taken == 20 * len(own) < 100


def test_places_in_a_stream_that_was_made_anew_mean_nothing(play, broker, generations, trainer_of, send, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", "tiny")

    async def work(hub):
        trainer, ledger = trainer_of(), Ledger()
        await send(hub, streams(20))
        async with ingesting(hub, generations, trainer, ledger):
            await counted(ledger, 100)
        await FrameReplay(hub, generations, trainer, ledger).run(ALL)
        checkpoints.save(trainer)
        await hub.stream.delete_stream(subjects.STREAM)
        await make_streams(broker.url)
        await send(hub, streams(10, "later"))
        resumed = trainer_of()
        checkpoints.load(resumed)
        for device, boot, window in streams(10, "later"):
            ledger.add(device, boot, window)
        return resumed, await FrameReplay(hub, generations, resumed, ledger).run(ALL)

    resumed, outcome = play(work)
    assert (outcome.put_back, outcome.taken) == (0, 50)
    assert {boot for _, boot, _ in held(resumed)} == {"later"}


def test_what_cannot_be_read_again_is_said_and_does_not_stand_in_the_way(
    play, generations, trainer_of, send, tiny_encoder, numbered
):
    async def work(hub):
        trainer, ledger = trainer_of(), Ledger()
        await send(hub, streams(10))
        async with ingesting(hub, generations, trainer, ledger):
            await counted(ledger, 50)
        await hub.stream.publish(subjects.frames("pi-1"), b"\xff" * 40)
        await hub.stream.purge_stream(subjects.STREAM, seq=11)
        fresh = trainer_of()
        fresh.to_reread = {3, 4, 20}
        one = await FrameReplay(hub, generations, fresh, ledger).run(ALL)
        for number in range(2, 8):
            generations.add(numbered(number), tiny_encoder.tensors)
        return one, fresh, await FrameReplay(hub, generations, trainer_of(), ledger).run(ALL)

    one, fresh, retired = play(work)
    assert (one.put_back, one.missing, one.taken) == (1, 2, 39)
    assert one.skipped == {"garbage": 1}
    assert not fresh.to_reread
    assert retired.taken == 0
    assert retired.skipped == {"retired": 40, "garbage": 1}


def test_audio_that_goes_on_from_frame_to_frame_is_put_together_again(
    play, generations, trainer_of, sounds, small_bundle, tmp_path
):
    """Each frame holds what is new since the one before, so that even those that are not wanted must be decoded."""
    info, checkpoints = small_bundle.manifest.info.front_end, Checkpoints(tmp_path / "checkpoint.pt", "tiny")
    rate, window, hop = info.sample_rate, info.window_samples, info.hop_samples
    audio = np.tile(np.concatenate(sounds), 2)
    encoder = AudioStreamEncoder("pcm16-stream", rate, window, hop, 16.0)
    heard = [audio[index * hop : index * hop + window] for index in range(130)]  # the first 30 are let go

    async def work(hub):
        trainer, ledger = trainer_of(), Ledger()
        for index, samples in enumerate(heard):
            payload = encoder.encode(samples, index, alone=False)
            frame = encode_frame(index, 0, 1, 0, "pcm16-stream", False, 0.5, payload)
            headers = {subjects.IDENTITY_HEADER: subjects.message_id("pi-1", "b0", index)}
            await hub.stream.publish(subjects.frames("pi-1"), frame, headers=headers)
        async with ingesting(hub, generations, trainer, ledger):
            await counted(ledger, len(heard))
        await FrameReplay(hub, generations, trainer, ledger).run(ALL)
        checkpoints.save(trainer)
        resumed = trainer_of()
        checkpoints.load(resumed)
        return trainer, resumed, await FrameReplay(hub, generations, resumed, ledger).run(ALL)

    trainer, resumed, outcome = play(work)
    assert outcome.missing == 0
    assert outcome.put_back == len(held(trainer)) < len(heard)
    assert held(resumed) == held(trainer)
