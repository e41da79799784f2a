"""Which bundle a device runs, and when that has proven itself."""

import asyncio

import pytest
from publishing import publish
from waiting import eventually

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.first_bundle import start_updater
from runtime_edge.updates.trial import PROVEN_WINDOWS, Trials


@pytest.fixture
def state(tmp_path, small_bundle):
    """Of a device on which a bundle has been installed."""
    BundleStore(tmp_path / "state", None).install_local(small_bundle.path)
    return tmp_path / "state"


def test_only_the_windows_that_a_bundle_has_run_itself_prove_it(state, small_bundle):
    async def work():
        with Worker() as worker:
            config = DeviceConfig(device="pi-1", state=state, trial_s=0.0)
            updater = await start_updater(config, None, worker, LoopCounts())
            engine = updater.engine
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


def test_a_device_that_is_told_of_a_newer_release_fetches_and_hands_it_over_once(state, second_bundle):
    """It has missed the news, and hears from the server that its generation is no longer served."""
    transport = InMemoryTransport()

    async def work():
        with Worker() as worker:
            config = DeviceConfig(device="pi-1", state=state, target="rpi4", variant="onnx-fp32")
            updater = await start_updater(config, transport, worker, LoopCounts())
            old = updater.engine
            publish(transport, second_bundle)
            assert updater.take_updates() == (None, None)
            await updater.recheck()
            engine, _ = updater.take_updates()
            assert updater.take_updates() == (None, None)
            return old, engine, updater.status()["bundle"]

    old, engine, running = asyncio.run(work())
    assert (old.generation, engine.generation) == (1, 2)
    assert running == second_bundle.digest
    assert Trials(state).record().current == second_bundle.digest


def test_a_release_whose_files_are_not_there_changes_nothing(state, small_bundle, second_bundle):
    transport = InMemoryTransport()

    async def work():
        with Worker() as worker:
            config = DeviceConfig(device="pi-1", state=state, target="rpi4", variant="onnx-fp32")
            updater = await start_updater(config, transport, worker, LoopCounts())
            publish(transport, second_bundle)
            transport.objects.clear()
            await updater.recheck()
            return updater.take_updates(), updater.status()["bundle"]

    assert asyncio.run(work()) == ((None, None), small_bundle.digest)
