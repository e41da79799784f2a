"""Frames of adapted devices: completed with the adapted weights, and of nobody else's device."""

import numpy as np
import pytest
import torch
from adapting import adapt
from idle_stream import settled
from peers import Peer, serving
from toys import Tiny

from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.wire import encode_frame
from runtime_edge.inference.prefix import Prefix
from runtime_server.adaptation.known_adaptations import KnownAdaptations
from runtime_server.releases.release_gate import first_model
from runtime_server.training.trainer import TrainConfig, Trainer


@pytest.fixture
def adapted(tiny_encoder, adaptable_bundle):
    """The changed encoder, and its adaptation."""
    return adapt(tiny_encoder.graph.module, adaptable_bundle)


@pytest.fixture
def frame(adaptable_bundle):
    """`frame(prefix, sound, window, cut, model)`: as a device sends it."""

    def encode(prefix, sound, window, cut, model):
        prefix.start(sound)
        payload, compressed = CutCodec(prefix.bundle.manifest.info.cuts[cut], "float32").encode(prefix.advance(cut))
        return encode_frame(window, 0, 1, cut, "float32", compressed, 0.5, payload, model)

    return encode


def embeddings(replies):
    return np.stack([np.frombuffer(replies[window].embedding, "<f2") for window in sorted(replies)]).astype(np.float32)


def test_frames_of_an_adapted_device_are_completed_with_its_weights_and_counted(
    play, adaptable, adapted, adaptable_bundle, frame, sounds, tmp_path
):
    changed, adaptation = adapted
    known = KnownAdaptations(tmp_path, adaptable)
    known.add("pi-1.rpi4", adaptation)
    prefix, plain = Prefix(adaptable_bundle, adaptation=adaptation), Prefix(adaptable_bundle)

    async def work(hub):
        one, two = await Peer(hub).listen(), await Peer(hub, "pi-2").listen()
        for window, sound in enumerate(sounds[:16]):
            await one.send(frame(prefix, sound, window, window % 4, adaptation.number), window)
            await two.send(frame(plain, sound, window, window % 4, 0), window)
        async with serving(hub, adaptable, adaptations=known) as ingest:
            found = await one.replies(16), await two.replies(16)
            await settled(hub)
            return *found, ingest.ledger.counts()

    mine, others, counted = play(work)
    with torch.no_grad():
        heard = torch.from_numpy(sounds[:16])
        for replies, model in ((mine, changed), (others, Tiny())):
            assert {reply.status for reply in replies.values()} == {"ok"}
            np.testing.assert_allclose(embeddings(replies), model(heard).numpy(), atol=2e-3)  # float16
    assert counted == {"pi-1": 16, "pi-2": 16}


def test_another_devices_adaptation_and_an_unknown_one_are_foreign(
    play, adaptable, adapted, adaptable_bundle, frame, sounds, tmp_path
):
    _, adaptation = adapted
    known = KnownAdaptations(tmp_path, adaptable)
    known.add("pi-1.rpi4", adaptation)
    prefix = Prefix(adaptable_bundle, adaptation=adaptation)

    async def work(hub):
        thief, owner = await Peer(hub, "pi-2").listen(), await Peer(hub).listen()
        for window in range(4):
            await thief.send(frame(prefix, sounds[0], window, window, adaptation.number), window)
            await owner.send(frame(prefix, sounds[0], window, window, adaptation.number + window % 2), window)
        async with serving(hub, adaptable, adaptations=known) as ingest:
            found = await thief.replies(4), await owner.replies(4)
            await settled(hub)
            return *found, ingest.ledger.counts()

    stolen, own, counted = play(work)
    assert {reply.status for reply in stolen.values()} == {"foreign"}
    assert [own[window].status for window in range(4)] == ["ok", "foreign", "ok", "foreign"]
    assert counted == {"pi-1": 2}


def test_blocks_do_not_train_behind_a_cut_of_an_adapted_device(
    play, adaptable, adapted, adaptable_bundle, frame, sounds, tmp_path, tiny_encoder
):
    _, adaptation = adapted
    known = KnownAdaptations(tmp_path, adaptable)
    known.add("pi-1.rpi4", adaptation)
    prefix, plain = Prefix(adaptable_bundle, adaptation=adaptation), Prefix(adaptable_bundle)
    heard = []
    trainer = Trainer(first_model(tiny_encoder.graph, adaptable.newest), TrainConfig(), 6)

    async def work(hub):
        one, two = await Peer(hub).listen(), await Peer(hub, "pi-2").listen()
        for window, sound in enumerate(sounds[:8]):
            await one.send(frame(prefix, sound, window, window % 4, adaptation.number), window)
            await two.send(frame(plain, sound, window, window % 4, 0), window)
        options = {"adaptations": known, "hear": lambda *window: heard.append(window)}
        async with serving(hub, adaptable, trainer, **options):
            await one.replies(8)
            await two.replies(8)
            await settled(hub)

    play(work)
    windows = sum(size.windows for size in trainer.sizes().values())
    assert windows == 8 + 2, "all of the one device, the audio of the other"
    told = sorted((device, generation, cut, model) for device, generation, _, cut, model in heard)
    models = {"pi-1": adaptation.number, "pi-2": 0}
    assert told == [(name, 1, cut, model) for name, model in models.items() for cut in range(4) for _ in range(2)]
    for _, _, window, cut, _ in heard:
        if cut == 0:
            assert min(np.abs(window.numpy() - sound).max() for sound in sounds[:8]) < 1e-6
