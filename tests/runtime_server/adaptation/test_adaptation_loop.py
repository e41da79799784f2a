"""The thread that adapts: whose windows train whom, how many wait, and who is dropped."""

import contextlib
import threading
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from adapting import adapt
from nudging import Nudge
from waiting import until

from runtime_server.adaptation.adaptation_loop import MAX_WAITING, AdaptationLoop, AdaptConfig
from runtime_server.adaptation.known_adaptations import KnownAdaptations


@pytest.fixture
def loop_of(tmp_path, recipient):
    """`loop_of(generations, **config)`, which knows three devices."""

    def make(generations, **config):
        known = KnownAdaptations(tmp_path / "adaptations", generations)
        settings = AdaptConfig("tent", least_s=0.0, **config)
        loop = AdaptationLoop(settings, generations, known, Nudge, lambda head: None)
        loop.follow({name: replace(recipient, device=name) for name in ("pi-1", "pi-2", "pi-3")})
        loop.known = known
        return loop

    return make


@contextlib.contextmanager
def running(loop):
    """What it offers, as (recipient, adaptation)."""
    offered = []
    thread = threading.Thread(target=loop.run, args=(lambda *offer: offered.append(offer),))
    thread.start()
    try:
        yield offered
    finally:
        loop.stop()
        thread.join()


def used(loop):
    return sum(loop.counts[use] for use in ("training", "judging"))


@pytest.fixture
def many():
    return torch.from_numpy(np.random.default_rng(5).standard_normal((256, 1, 1024)).astype(np.float32))


def test_each_device_trains_its_own_encoder(loop_of, adaptable, many):
    loop = loop_of(adaptable)
    with running(loop) as offered:
        for place, window in enumerate(many):
            loop.hear(("pi-1", "pi-2")[place % 2], 1, window)
        until(lambda: {recipient.device for recipient, _ in offered} == {"pi-1", "pi-2"}, "one for each")
    layers = {recipient.device: adaptation.layers for recipient, adaptation in offered}
    assert layers["pi-1"] != layers["pi-2"], "they have heard different things"


def test_devices_of_a_target_may_share_one(loop_of, adaptable, many, recipient):
    loop = loop_of(adaptable)
    loop.follow(dict.fromkeys(("pi-1", "pi-2"), replace(recipient, device=None)))
    with running(loop) as offered:
        for place, window in enumerate(many[:128]):
            loop.hear(("pi-1", "pi-2")[place % 2], 1, window)
        until(lambda: offered, "one for both, after as many windows as one device needs")
    assert {recipient.key for recipient, _ in offered} == {"_all.rpi4"}


def test_windows_beyond_what_may_wait_are_dropped_at_once(loop_of, adaptable, many):
    loop = loop_of(adaptable)
    for place in range(MAX_WAITING + 5):
        loop.hear("pi-1", 1, many[place % len(many)])
    assert loop.counts == {"dropped": 5}


def test_windows_of_nobody_and_of_unknown_or_earlier_generations_train_nothing(
    loop_of, adaptable, many, adaptable_bundle, tiny_encoder
):
    loop = loop_of(adaptable)
    info = msgspec.structs.replace(adaptable_bundle.manifest.info, generation=2)
    metadata = msgspec.structs.replace(adaptable_bundle.manifest.additional_metadata, ssc=info)
    manifest = msgspec.structs.replace(adaptable_bundle.manifest, additional_metadata=metadata)
    adaptable.add(replace(adaptable_bundle, manifest=manifest), tiny_encoder.tensors)
    with running(loop):
        for number in (1, 2, 1, 7):
            for window in many[:40]:
                loop.hear("pi-1", number, window)
        for window in many[:40]:
            loop.hear("stranger", 2, window)
        until(lambda: loop.counts["unused"] == 120, "late windows of generation 1, of no generation, of nobody")
    assert used(loop) == 2 * (32 + 5), "generation 2 starts over"


def test_the_device_that_was_not_heard_for_longest_is_dropped(loop_of, adaptable, many):
    loop = loop_of(adaptable, devices=2)
    with running(loop):
        for name in ("pi-1", "pi-2", "pi-1", "pi-3", "pi-1"):
            for window in many[:24]:
                loop.hear(name, 1, window)
        until(lambda: loop.counts["judging"] == 15, "all windows")
        # 21 of 24 windows train: pi-1's third turn completes its second batch, because it was never dropped.
        assert loop.counts["training"] == 32
        for window in many[:24]:
            loop.hear("pi-2", 1, window)
        until(lambda: loop.counts["judging"] == 18, "all windows")
        assert loop.counts["training"] == 32, "pi-2 was dropped for pi-3 and begins again"


def test_a_student_goes_on_from_what_its_device_has(loop_of, adaptable, many, tiny_encoder, adaptable_bundle):
    loop = loop_of(adaptable)
    _, adaptation = adapt(tiny_encoder.graph.module, adaptable_bundle)
    gentle = np.full(12, 0.005, "<f2").tobytes()
    layers = tuple(msgspec.structs.replace(layer, shift=gentle[: len(layer.shift)]) for layer in adaptation.layers)
    ones = np.ones(12, "<f2").tobytes()
    layers = tuple(msgspec.structs.replace(layer, scale=ones[: len(layer.scale)]) for layer in layers)
    adaptation = msgspec.structs.replace(adaptation, layers=layers)
    loop.known.add("pi-1.rpi4", adaptation)
    with running(loop) as offered:
        for window in many[:128]:
            loop.hear("pi-1", 1, window)
        until(lambda: offered or loop.counts["refused"], "an attempt")
    ((_, found),) = offered
    for layer, before in zip(found.layers, adaptation.layers, strict=True):
        moved = layer.arrays()[1] - before.arrays()[1]
        assert 0.001 < moved.min() <= moved.max() < 0.005, "three steps from there"


def test_what_cannot_be_trained_on_starts_over_and_ends_nothing(loop_of, adaptable, many, caplog):
    loop = loop_of(adaptable)
    with running(loop) as offered:
        for place, window in enumerate(many[:40]):
            loop.hear("pi-1", 1, window[:, : 3 + place])
        for window in many[:128]:
            loop.hear("pi-2", 1, window)
        until(lambda: offered, "pi-2's")
    assert "adaptation for pi-1.rpi4 starts over" in caplog.text


def test_without_audio_what_is_behind_the_earliest_cut_is_trained(loop_of, adaptable, many, adaptable_bundle):
    loop, segments = loop_of(adaptable), adaptable.newest.model.segments
    with torch.no_grad():
        first = segments[0](many[:, 0]).unsqueeze(1)
        second = segments[1](first[:, 0]).unsqueeze(1)
    with running(loop) as offered:
        for window in second[:40]:
            loop.hear("pi-1", 1, window, 2)
        for window in first[:128]:
            loop.hear("pi-1", 1, window, 1)
        until(lambda: offered, "one from the earlier cut")
        before = used(loop), loop.counts["unused"]
        for place in range(4):
            loop.hear("pi-1", 1, second[place], 2)
        loop.hear("pi-1", 1, torch.zeros(1, 6), len(segments))
        until(lambda: loop.counts["unused"] == before[1] + 5, "later cuts train nothing then")
        assert used(loop) == before[0]
        loop.hear("pi-1", 1, many[0])
        until(lambda: sum(loop.counts[use] for use in ("training", "judging", "unused")) >= before[0], "audio")
    for _, adaptation in offered:
        assert {layer.block for layer in adaptation.layers} <= set(adaptable_bundle.manifest.info.blocks[1:])


def test_what_an_adapted_prefix_made_trains_nothing(loop_of, adaptable, many, tiny_encoder, adaptable_bundle):
    loop = loop_of(adaptable)
    _, everywhere = adapt(tiny_encoder.graph.module, adaptable_bundle)
    behind = msgspec.structs.replace(everywhere, layers=everywhere.layers[1:])
    for adaptation in (everywhere, behind):
        loop.known.add("pi-1.rpi4", adaptation)
    with torch.no_grad():
        first = adaptable.newest.model.segments[0](many[:, 0]).unsqueeze(1)
    with running(loop):
        for adaptation in (everywhere, behind):
            for window in first[:40]:
                loop.hear("pi-1", 1, window, 1, adaptation.number)
        until(lambda: used(loop) == 32 + 5, "the second ran the compiled stem")
    assert loop.counts["unused"] == 40
