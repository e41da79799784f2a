"""Which adaptation a device runs, and that a bad one changes nothing."""

import asyncio
import threading

import numpy as np
import pytest
import torch
from adapting import adapt
from msgspec.structs import replace
from publishing import publish

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.model_id import model_digest, model_number
from runtime_edge.formats.records.envelope import seal
from runtime_edge.formats.update_events import decode_update_event
from runtime_edge.formats.wire import decode_frame
from runtime_edge.inference.engine import Engine
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.adaptation_updater import AdaptationUpdater
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.first_bundle import start_updater
from runtime_edge.updates.updater import Updater
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import recompile

OWN = subjects.table_key("rpi4", "pi-1")
WINDOW = np.random.default_rng(0).uniform(-1, 1, 1024).astype(np.float32)


@pytest.fixture
def state(tmp_path, adaptable_bundle):
    """Of a device on which a bundle has been installed."""
    BundleStore(tmp_path / "state", None).install_local(adaptable_bundle.path)
    return tmp_path / "state"


@pytest.fixture
def made(tiny_encoder, adaptable_bundle):
    """An encoder with other norms, and its adaptation."""
    return adapt(tiny_encoder.graph.module, adaptable_bundle)


def record(adaptation, number=1, key=OWN):
    return seal("adaptation", key, number, adaptation.to_json(), None)


async def put(transport, adaptation, number=1, key=OWN):
    await transport.change(subjects.ADAPTATIONS, key, record(adaptation, number, key))


class Started:
    """A device's updaters, and what they have handed over."""

    def __init__(self, updater: Updater, adaptations: AdaptationUpdater) -> None:
        self.updater, self.adaptations = updater, adaptations
        self.engine = updater.engine

    def swap(self) -> Engine | None:
        """What takes over before the next window."""
        engine, _ = self.updater.take_updates()
        self.engine = engine or self.engine
        return engine


def run(state, transport, work, **settings):
    """Run `work(started)` beside a device's updaters."""

    async def begin():
        with Worker() as worker:
            config = DeviceConfig(device="pi-1", state=state, target="rpi4", **settings)
            updater = await start_updater(config, transport, worker, LoopCounts())
            adaptations = AdaptationUpdater(config, transport, updater)
            await updater.follow(lambda: None)
            await adaptations.follow()
            return await work(Started(updater, adaptations))

    return asyncio.run(begin())


def events(transport):
    return [decode_update_event(data) for subject, data in transport.published if subject == subjects.events("pi-1")]


def test_an_adaptation_takes_over_between_two_windows_and_is_used_by_the_next_run(state, made, adaptable_bundle):
    changed, adaptation = made
    transport = InMemoryTransport()
    wanted = changed(torch.from_numpy(WINDOW[None]))[0].detach().numpy()

    async def work(started):
        before = started.engine
        await put(transport, adaptation)
        assert started.engine is before, "nothing changes until the next window asks"
        assert started.swap() is not None
        np.testing.assert_allclose(started.engine.embed(WINDOW), wanted, atol=1e-4)
        assert np.abs(before.embed(WINDOW) - wanted).max() > 0.01, "the earlier engine is not touched"
        frames = [engine.run(WINDOW, 0, 0, 2, 0.0, False).frame for engine in (before, started.engine)]
        return [decode_frame(frame)[0][0].model for frame in frames], started.updater.status()["adaptation"]

    numbers, said = run(state, transport, work)
    assert numbers == [model_number(adaptable_bundle.manifest), adaptation.number]
    assert said == adaptation.digest
    assert [(event.event, event.digest) for event in events(transport)] == [("adapted", adaptation.digest)]

    async def again(started):
        return started.swap().embed(WINDOW)

    np.testing.assert_allclose(run(state, None, again), wanted, atol=1e-4)


def test_an_empty_adaptation_brings_the_compiled_weights_back(state, made):
    transport = InMemoryTransport()
    _, adaptation = made

    async def work(started):
        before = started.engine.embed(WINDOW)
        await put(transport, adaptation)
        started.swap()
        await put(transport, replace(adaptation, layers=(), self_tests={}), 2)
        started.swap()
        assert started.engine.adaptation is None
        np.testing.assert_array_equal(started.engine.embed(WINDOW), before)

    run(state, transport, work)


def test_the_adaptation_for_this_device_comes_before_the_one_for_all(state, made, adaptable_bundle, tiny_encoder):
    transport = InMemoryTransport()
    _, shared = adapt(tiny_encoder.graph.module, adaptable_bundle, seed=5)

    async def work(started):
        await put(transport, shared, key=subjects.table_key("rpi4"))
        used = [started.swap().adaptation]
        await put(transport, made[1])
        used.append(started.swap().adaptation)
        await put(transport, replace(shared, created_by="later"), 2, subjects.table_key("rpi4"))
        assert started.swap() is None
        return used

    assert run(state, transport, work) == [shared, made[1]]


def with_layer(place, **changes):
    """A function that changes one layer of an adaptation."""

    def change(adaptation):
        layers = list(adaptation.layers)
        layers[place] = replace(layers[place], **changes)
        return replace(adaptation, layers=tuple(layers))

    return change


def only_int8(adaptation):
    return replace(adaptation, self_tests={"onnx-int8": adaptation.self_tests["onnx-int8"]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda adaptation: replace(adaptation, model="sha256:" + "0" * 64), "other weights run here"),
        (lambda adaptation: replace(adaptation, encoder="another"), "other weights run here"),
        (only_int8, "self_tests: only for onnx-int8, and onnx-fp32 runs here"),
        (with_layer(1, block="block-00"), "has no normalisation layer 'down.1'"),
        (with_layer(2, block="block-09"), "the bundle has no block 'block-09'"),
        (with_layer(2, scale=np.full(12, 3, "<f2").tobytes()), "self-test embedding is off"),
        (with_layer(0, scale=bytes.fromhex("003c") * 3, shift=bytes(6)), "does not have 3 channels"),
    ],
)
def test_one_that_does_not_fit_is_refused_by_reason_and_nothing_changes(state, made, change, reason):
    transport, (_, adaptation) = InMemoryTransport(), made

    async def work(started):
        before = started.engine
        await put(transport, change(adaptation))
        assert started.swap() is None
        assert started.updater.engine is before
        await put(transport, adaptation, 2)
        return started.swap()

    assert run(state, transport, work).adaptation == adaptation, "a good one is taken afterwards"
    refused, taken = events(transport)
    assert (refused.event, taken.event) == ("adaptation_refused", "adapted")
    assert reason in refused.reason


def test_a_bundle_that_was_not_compiled_for_it_cannot_be_adapted(tmp_path, small_bundle, made):
    BundleStore(tmp_path / "state", None).install_local(small_bundle.path)
    transport, adaptation = InMemoryTransport(), replace(made[1], model=model_digest(small_bundle.manifest))

    async def work(started):
        await put(transport, adaptation)
        return started.swap()

    assert run(tmp_path / "state", transport, work) is None
    assert "cannot be adapted; compile it with --adaptable" in events(transport)[0].reason


def test_one_for_another_generation_waits_and_is_no_failure(state, made):
    transport, (_, adaptation) = InMemoryTransport(), made

    async def work(started):
        await put(transport, replace(adaptation, generation=2))
        return started.swap()

    assert run(state, transport, work) is None
    assert events(transport) == []


def test_one_that_came_before_its_bundle_is_used_when_that_takes_over(tmp_path, state, adaptable_bundle, tiny_encoder):
    windows = calibration_set_for(adaptable_bundle.manifest.info, None).windows[:2]
    later = recompile(
        adaptable_bundle, tiny_encoder.tensors, tmp_path / "later", generation=2, windows=windows, reference=None
    )
    transport, (_, adaptation) = InMemoryTransport(), adapt(tiny_encoder.graph.module, later)

    async def work(started):
        await put(transport, adaptation)
        assert started.swap() is None
        publish(transport, later)
        await transport.change(subjects.RELEASES, "rpi4", transport.values[subjects.RELEASES, "rpi4"])
        return started.swap()

    taken = run(state, transport, work)
    assert (taken.generation, taken.adaptation) == (2, adaptation)
    assert [event.event for event in events(transport)][-1] == "adapted"


def test_windows_run_while_another_engine_is_made(state, made, monkeypatch):
    """The engine in use is asked from another thread all the time, and always gives what it gave before."""
    transport, (_, adaptation) = InMemoryTransport(), made
    making, ran = threading.Event(), threading.Event()
    ready = Engine.ready

    def slowly(engine):
        if engine.adaptation is not None:
            making.set()
            assert ran.wait(60)
        return ready(engine)

    monkeypatch.setattr(Engine, "ready", slowly)

    async def work(started):
        before = started.engine.embed(WINDOW)
        coming = asyncio.create_task(put(transport, adaptation))
        assert await asyncio.to_thread(making.wait, 60)
        for _ in range(20):
            np.testing.assert_array_equal(started.engine.embed(WINDOW), before)
        assert started.swap() is None
        ran.set()
        await coming
        return started.swap()

    assert isinstance(run(state, transport, work).bundle, Bundle)
