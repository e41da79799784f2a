"""Adaptations on a running system: swapped under load without losing a window, and completed with the same weights."""

import asyncio
import itertools
import time

import harness
import msgspec
import numpy as np
import pytest
from adapting import adapt

from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import open_bundle
from runtime_server.adaptation.known_adaptations import KnownAdaptations
from runtime_server.suffix.generations import Generations
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder


@pytest.fixture(scope="module")
def adaptable(toy, tmp_path_factory):
    """The toy's bundle, with norms that can be adapted."""
    encoder, path = load_encoder(toy / "encoder.pt"), tmp_path_factory.mktemp("adaptable") / "bundle"
    compile_encoder(encoder, CompileOptions([load_target("rpi4")], cuts="log_mel,one,two", adaptable=True), path)
    return encoder, open_bundle(path)


def adapted(encoder, bundle, seed):
    """The toy with other norms, and the adaptation."""
    changed, adaptation = adapt(encoder.graph.module, bundle, seed)
    model = harness.Toy()
    model.load_state_dict(changed.state_dict())
    return model, adaptation


@pytest.fixture
def served(adaptable, toy, tmp_path):
    """`served(name, adaptations)` starts a server that has sent these to a device before."""
    encoder, bundle = adaptable
    started = []

    def serve(name, adaptations):
        known = KnownAdaptations(tmp_path / "server" / "adaptations", Generations(encoder.graph))
        for adaptation in adaptations:
            known.add(subjects.table_key("rpi4", name), adaptation)
        started.append(harness.Server(tmp_path, toy / "encoder.pt", bundle.path, "--no-training"))
        return started[-1]

    yield serve
    for server in started:
        server.process.signal(9)


def give(server, name, adaptable, adaptation):
    """Have a device ship its second block's activation, and send it an adaptation."""
    server.put_table(harness.always(adaptable[1], "rpi4", "two"), name)
    server.ask(lambda hub: hub.put_adaptation(adaptation, server.key, "rpi4", name))


async def swap_all(hub, server, name, adaptations):
    """Send one after the other, each when the one before is in use; returns how long each took, s."""
    events, took = asyncio.Queue(), []

    async def on_event(message):
        await events.put(msgspec.json.decode(message.data))

    await hub.client.subscribe(subjects.events(name), cb=on_event)
    for adaptation in adaptations:
        sent = time.monotonic()
        await hub.put_adaptation(adaptation, server.key, "rpi4", name)
        while True:
            event = await asyncio.wait_for(events.get(), harness.PATIENCE_S)
            assert event["event"] != "adaptation_refused", event
            if event["event"] == "adapted":
                break
        assert event["digest"] == adaptation.digest
        took.append(time.monotonic() - sent)
    return took


@pytest.mark.parametrize("swaps", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_swaps_under_load_lose_nothing_and_every_answer_is_of_one_of_the_models(
    start, served, adaptable, tmp_path, swaps
):
    encoder, bundle = adaptable
    name = f"pi-{swaps}"
    changed, adaptations = zip(*(adapted(encoder, bundle, seed) for seed in (0, 1)), strict=True)
    server = served(name, adaptations)
    server.put_table(harness.always(bundle, "rpi4", "one"), name)
    source = harness.write_wav(tmp_path / "audio.wav", 20.0 + 6.0 * swaps, seed=44)
    windows = harness.windows_of(source)
    # Eight times as fast as real: a window every 16 ms.
    options = "--speed", 8, "--in-flight", 16, "--encoding", "float32", "--events", "off"
    device = start.device(server, name, source, *options)
    device.wait_for_results(20)
    order = list(itertools.islice(itertools.cycle(adaptations), swaps))
    took = server.ask(lambda hub: swap_all(hub, server, name, order))
    assert device.process.running, "the recording was too short for the swaps"
    report = device.finish()

    results = device.results()
    assert len(results) == report["windows_captured"] == report["windows_acked"] == len(windows)
    assert report["windows_lost"] == report["windows_dropped"] == 0
    assert not report["errors"]
    assert report["adaptation"] == order[-1].digest
    cosines = np.stack([harness.cosines(results, windows, model) for model in (harness.Toy(), *changed)])
    which = cosines.argmax(0)
    assert cosines.max(0).min() > 0.999
    assert which[0] == 0
    assert set(which) == {0, 1, 2}
    # Windows are answered in any order around a swap; a model that runs twice has run in between.
    assert np.count_nonzero(np.diff(which)) >= swaps
    assert np.median(took) < 1.0


def test_a_device_begins_again_with_the_adaptation_that_it_had(start, served, adaptable, tmp_path):
    changed, adaptation = adapted(*adaptable, 3)
    server = served("pi-again", [adaptation])
    give(server, "pi-again", adaptable, adaptation)
    source = harness.write_wav(tmp_path / "audio.wav", 8.0, seed=45)
    for _ in range(2):
        device = start.device(server, "pi-again", source, "--encoding", "float32", "--events", "off")
        report = device.finish()
        assert report["adaptation"] == adaptation.digest
        assert not report["errors"]
        later = [result for result in device.results() if result["window"] > 20]
        assert harness.cosines(later, harness.windows_of(source), changed).min() > 0.999


def test_what_was_made_for_another_device_is_not_completed(start, served, adaptable, tmp_path):
    _, adaptation = adapted(*adaptable, 4)
    server = served("pi-other", [adaptation])
    give(server, "pi-thief", adaptable, adaptation)
    source = harness.write_wav(tmp_path / "audio.wav", 8.0, seed=46)
    device = start.device(server, "pi-thief", source, "--deadline-ms", 500)
    device.finish()
    later = {result["finished"] for result in device.results() if result["window"] > 20}
    assert later == {"fallback"}, "the device answers itself, because the server completes none of its frames"
