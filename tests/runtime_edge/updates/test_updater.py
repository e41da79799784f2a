"""Which bundle a device runs, and when that has proven itself."""

import asyncio

import pytest
from publishing import publish
from small_tables import always
from waiting import eventually

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.records.envelope import seal
from runtime_edge.formats.update_events import decode_update_event
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
    (event,) = told(transport)
    assert (event.event, event.generation, event.digest) == ("generation", 2, second_bundle.digest)


def told(transport):
    """What was published, which must be events about updates of version 2."""
    events = [decode_update_event(body) for _, body in transport.published]
    assert {(event.version, event.device) for event in events} == {(2, "pi-1")}
    return events


def test_a_device_tells_what_it_has_fetched_and_that_it_has_proven_itself(tmp_path, small_bundle):
    transport, key = InMemoryTransport(), subjects.table_key("rpi4")
    publish(transport, small_bundle)
    table = always(small_bundle, "rpi4", small_bundle.manifest.info.cuts[1].name)
    transport.values[subjects.TABLES, key] = seal("table", key, 1, table.to_json(), None)

    async def work():
        with Worker() as worker:
            config = DeviceConfig(
                device="pi-1", state=tmp_path / "empty", target="rpi4", variant="onnx-fp32", trial_s=0.0
            )
            updater = await start_updater(config, transport, worker, LoopCounts())
            engine = updater.engine
            for _ in range(PROVEN_WINDOWS):
                updater.window_ran(engine.bundle)
            await eventually(lambda: len(transport.published) == 2)

    asyncio.run(work())
    fetched, proven = told(transport)
    assert (fetched.event, fetched.digest, fetched.patches) == ("fetched", small_bundle.digest, 0)
    assert fetched.assets == len(list((tmp_path / "empty").rglob("model.onnx")))
    assert fetched.fetched_bytes == sum(path.stat().st_size for path in (tmp_path / "empty").rglob("model.onnx"))
    assert (proven.event, proven.generation, proven.digest) == ("proven", 1, small_bundle.digest)


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
