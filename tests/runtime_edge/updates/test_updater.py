"""Which bundle a device runs, and when that has proven itself."""

import asyncio

import pytest
from waiting import eventually

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import MANIFEST, open_bundle
from runtime_edge.formats.records.release import Release, encode
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.trial import PROVEN_WINDOWS, Trials
from runtime_edge.updates.updater import Updater
from streamsplit_compile.bundle.calibrate import windows_for
from streamsplit_compile.bundle.compiler import recompile


@pytest.fixture
def state(tmp_path, small_bundle):
    """Of a device on which a bundle has been installed."""
    BundleStore(tmp_path / "state", None).install_local(small_bundle.path)
    return tmp_path / "state"


@pytest.fixture(scope="module")
def second(small_bundle, tiny_encoder, tmp_path_factory):
    """The bundle's next generation."""
    windows = windows_for(small_bundle.manifest.info, None)[:2]
    path = tmp_path_factory.mktemp("second") / "bundle"
    return recompile(small_bundle, tiny_encoder.tensors, path, generation=2, windows=windows, reference=None, key=None)


def publish(transport, bundle):
    """As a server does."""
    for block in bundle.manifest.info.blocks:
        file = bundle.manifest.variant(block, "onnx-fp32").file
        transport.objects[subjects.asset_object(file)] = bundle.read(file)
    transport.objects[subjects.manifest_object(bundle.digest)] = (bundle.path / MANIFEST).read_bytes()
    release = Release(generation=bundle.manifest.info.generation, manifest=bundle.digest)
    transport.values[subjects.RELEASES, "rpi4"] = encode(release)


def test_only_the_windows_that_a_bundle_has_run_itself_prove_it(state, small_bundle):
    async def work():
        with Worker() as worker:
            updater = Updater(DeviceConfig(device="pi-1", state=state, trial_s=0.0), None, worker, LoopCounts())
            engine, _ = await updater.first()
            for _ in range(2 * PROVEN_WINDOWS):
                updater.take_updates()
            assert updater.status()["on_trial"], "asking for updates, as every table that comes does, proves nothing"
            for _ in range(2 * PROVEN_WINDOWS):
                updater.window_ran(open_bundle(small_bundle.path))
            assert updater.status()["on_trial"], "the windows of another bundle prove nothing"
            for _ in range(PROVEN_WINDOWS):
                assert updater.status()["on_trial"]
                updater.window_ran(engine.bundle)
            assert not updater.status()["on_trial"]
            await eventually(lambda: Trials(state).record().proven == engine.bundle.digest)

    asyncio.run(work())


def test_a_device_that_is_told_of_a_newer_release_fetches_and_hands_it_over_once(state, second):
    """It has missed the news, and hears from the server that its generation is no longer served."""
    transport = InMemoryTransport()

    async def work():
        with Worker() as worker:
            config = DeviceConfig(device="pi-1", state=state, target="rpi4", variant="onnx-fp32")
            updater = Updater(config, transport, worker, LoopCounts())
            old, _ = await updater.first()
            publish(transport, second)
            assert updater.take_updates() == (None, None)
            await updater.recheck()
            engine, _ = updater.take_updates()
            assert updater.take_updates() == (None, None)
            return old, engine, updater.status()["bundle"]

    old, engine, running = asyncio.run(work())
    assert (old.generation, engine.generation) == (1, 2)
    assert running == second.digest
    assert Trials(state).record().current == second.digest


def test_a_release_whose_files_are_not_there_changes_nothing(state, small_bundle, second):
    transport = InMemoryTransport()

    async def work():
        with Worker() as worker:
            config = DeviceConfig(device="pi-1", state=state, target="rpi4", variant="onnx-fp32")
            updater = Updater(config, transport, worker, LoopCounts())
            await updater.first()
            publish(transport, second)
            transport.objects.clear()
            await updater.recheck()
            return updater.take_updates(), updater.status()["bundle"]

    assert asyncio.run(work()) == ((None, None), small_bundle.digest)
