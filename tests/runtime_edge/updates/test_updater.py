"""Which bundle a device runs, and when that has proven itself."""

import asyncio

import numpy as np
import pytest
from publishing import publish
from small_tables import always, up_to
from waiting import eventually

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import SscError, WaitsForBudget
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.records.envelope import seal
from runtime_edge.formats.update_events import decode_update_event
from runtime_edge.inference.self_test import self_test_waveform
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.budgets import Budgets
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.first_bundle import start_updater
from runtime_edge.updates.trial import PROVEN_WINDOWS, Trials, update_log


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


class CountingTransport(InMemoryTransport):
    """Notes what is fetched."""

    def __init__(self):
        super().__init__()
        self.fetched = []

    async def fetch(self, name, limit_bytes):
        self.fetched.append(name)
        return await super().fetch(name, limit_bytes)

    def spend(self, mb_per_day):
        """As much of the budget for updates as a new one has."""
        self.updates = round(mb_per_day * 1e6)


@pytest.fixture(scope="module")
def changed_bundle(tmp_path_factory, tiny_encoder, small_bundle):
    """The next generation, with other weights in every block that has any."""
    from streamsplit_compile.bundle.calibrate import calibration_set_for
    from streamsplit_compile.bundle.compiler import recompile

    windows = calibration_set_for(small_bundle.manifest.info, None).windows[:2]
    tensors = {name: value * np.float32(1.01) for name, value in tiny_encoder.tensors.items()}
    path = tmp_path_factory.mktemp("bundles") / "changed"
    return recompile(small_bundle, tensors, path, generation=2, windows=windows, reference=None, key=None)


def size_of(bundle, old=None):
    """Bytes of the files that a device fetches which has the other one."""
    files = {
        (info := bundle.manifest.variant(block, "onnx-fp32")).file: info.bytes for block in bundle.manifest.info.blocks
    }
    return sum(size for file, size in files.items() if old is None or file not in old.manifest.assets())


def budget_of(size, seconds):
    """MB a day that bring so many bytes in so many seconds."""
    return size * 86_400 / seconds / 1e6


def test_a_release_larger_than_what_is_left_waits_and_comes_by_itself_later(state, small_bundle, changed_bundle):
    transport = CountingTransport()
    mb_per_day = budget_of(size_of(changed_bundle, small_bundle), 8.0)
    transport.spend(mb_per_day)

    async def work():
        with Worker() as worker:
            config = DeviceConfig(
                device="pi-1", state=state, target="rpi4", variant="onnx-fp32", update_mb_per_day=mb_per_day
            )
            updater = await start_updater(config, transport, worker, LoopCounts(), Budgets(config, transport))
            publish(transport, changed_bundle)
            await updater.recheck()
            waits = updater.status()["update_waits"]
            assert updater.take_updates() == (None, None)
            assert transport.fetched == [subjects.manifest_object(changed_bundle.digest)]
            engine, _ = await eventually(lambda: (found := updater.take_updates())[0] and found)
            return waits, engine, updater.status()

    waits, engine, status = asyncio.run(work())
    assert (waits["generation"], waits["manifest"]) == (2, changed_bundle.digest)
    assert "--update-mb-per-day" in waits["reason"]
    assert waits["until"] > 0
    assert engine.generation == 2
    assert status["update_waits"] is None
    assert status["update_failures"] == []
    assert transport.fetched.count(subjects.manifest_object(changed_bundle.digest)) == 1, "it is known by then"
    log = update_log(state).events
    assert [entry["event"] for entry in log if entry.get("generation") == 2].count("update_waits") == 1


def test_one_that_never_fits_says_so_and_the_next_one_may(state, small_bundle, changed_bundle):
    transport, size = CountingTransport(), size_of(changed_bundle, small_bundle)

    async def work(update_mb_per_day):
        with Worker() as worker:
            config = DeviceConfig(
                device="pi-1", state=state, target="rpi4", variant="onnx-fp32", update_mb_per_day=update_mb_per_day
            )
            updater = await start_updater(config, transport, worker, LoopCounts())
            publish(transport, changed_bundle)
            await updater.recheck()
            return updater.take_updates()[0], updater.status()["update_waits"]

    engine, waits = asyncio.run(work(size / 8e6))
    assert engine is None
    assert (waits["until"], waits["generation"]) == (None, 2)
    assert "make it at least" in waits["reason"]
    engine, waits = asyncio.run(work(1000.0))
    assert (engine.generation, waits) == (2, None)


def test_the_first_bundle_comes_on_credit_where_it_fits_into_a_week(tmp_path, small_bundle):
    transport, key = CountingTransport(), subjects.table_key("rpi4")
    publish(transport, small_bundle)
    table = always(small_bundle, "rpi4", small_bundle.manifest.info.cuts[1].name)
    transport.values[subjects.TABLES, key] = seal("table", key, 1, table.to_json(), None)
    size = size_of(small_bundle)

    async def work(update_mb_per_day):
        with Worker() as worker:
            config = DeviceConfig(
                device="pi-1", state=tmp_path / f"{update_mb_per_day}", target="rpi4", variant="onnx-fp32",
                update_mb_per_day=update_mb_per_day,
            )  # fmt: skip
            budgets = Budgets(config, transport)
            updater = await start_updater(config, transport, worker, LoopCounts(), budgets)
            return updater.engine.generation, budgets.status().update_budget.left_bytes

    generation, left = asyncio.run(work(size / 4e6))
    assert generation == 1
    assert left < -size / 2
    with pytest.raises(WaitsForBudget, match="more than 7 days"):
        asyncio.run(work(size / 9e6))


def test_only_the_blocks_up_to_the_deepest_cut_come_and_later_those_that_a_table_needs(tmp_path, small_bundle):
    """One cut after the other, and back: what is here stays."""
    transport, key = CountingTransport(), subjects.table_key("rpi4")
    publish(transport, small_bundle)
    info, names = small_bundle.manifest.info, [cut.name for cut in small_bundle.manifest.info.cuts]
    files = [subjects.asset_object(small_bundle.manifest.variant(block, "onnx-fp32").file) for block in info.blocks]
    chirp = self_test_waveform(info.front_end.window_samples, info.front_end.sample_rate)

    def record(number, cut):
        return seal("table", key, number, up_to(small_bundle, "rpi4", cut).to_json(), None)

    def fetched():
        return [name for name in transport.fetched if name.startswith("assets/")]

    async def work():
        with Worker() as worker:
            config = DeviceConfig(device="pi-1", state=tmp_path, target="rpi4", variant="onnx-fp32", broker="memory:")
            transport.values[subjects.TABLES, key] = record(1, names[1])
            updater = await start_updater(config, transport, worker, LoopCounts())
            engine = updater.engine
            assert fetched() == files[:1]
            assert engine.prefix.blocks_there == (1, len(files))
            assert await worker.run(engine.embed, chirp) is None, "nobody can go on"
            step = await worker.run(engine.run, chirp, 0, 0, 1, 0.5, True)
            assert step.embedding is None
            assert step.frame

            await updater.follow(lambda: None)
            await transport.change(subjects.TABLES, key, record(2, names[3]))
            deeper, table = updater.take_updates()
            assert fetched() == files[:3]
            assert deeper.prefix.blocks_there == (3, len(files))
            assert table.cuts == tuple(names[:4])
            assert updater.status()["bundle"] == small_bundle.digest

            await transport.change(subjects.TABLES, key, record(3, names[-1]))
            whole, _ = updater.take_updates()
            assert fetched() == files
            assert await worker.run(whole.embed, chirp) is not None
            assert await worker.run(whole.ready) < 1e-4, "now the embedding is known to be right"
            await transport.change(subjects.TABLES, key, record(4, names[2]))
            assert updater.take_updates()[0] is None
            assert updater.table.cuts == tuple(names[:3])

    asyncio.run(work())
    assert BundleStore(tmp_path, None).current().blocks_there("onnx-fp32") == len(files)


def test_a_part_of_a_bundle_runs_again_after_a_restart_and_without_a_broker_says_what_is_missing(
    tmp_path, small_bundle
):
    transport, key = InMemoryTransport(), subjects.table_key("rpi4")
    publish(transport, small_bundle)
    cut = small_bundle.manifest.info.cuts[2].name
    transport.values[subjects.TABLES, key] = seal("table", key, 1, up_to(small_bundle, "rpi4", cut).to_json(), None)

    async def start(connection, broker):
        with Worker() as worker:
            config = DeviceConfig(device="pi-1", state=tmp_path, target="rpi4", variant="onnx-fp32", broker=broker)
            return (await start_updater(config, connection, worker, LoopCounts())).engine.prefix.blocks_there

    assert asyncio.run(start(transport, "memory:")) == (2, 4)
    transport.disconnect()
    assert asyncio.run(start(transport, "memory:")) == (2, 4), "the link is down"
    with pytest.raises(SscError, match=r"of its blocks the first 2 are here"):
        asyncio.run(start(None, None))


def test_blocks_for_a_table_wait_for_the_budget_too(tmp_path, small_bundle):
    transport, key = CountingTransport(), subjects.table_key("rpi4")
    publish(transport, small_bundle)
    names = [cut.name for cut in small_bundle.manifest.info.cuts]
    mb_per_day = budget_of(size_of(small_bundle), 8.0)

    def record(number, cut):
        return seal("table", key, number, up_to(small_bundle, "rpi4", cut).to_json(), None)

    async def work():
        with Worker() as worker:
            config = DeviceConfig(
                device="pi-1", state=tmp_path, target="rpi4", variant="onnx-fp32", broker="memory:",
                update_mb_per_day=mb_per_day,
            )  # fmt: skip
            transport.values[subjects.TABLES, key] = record(1, names[1])
            updater = await start_updater(config, transport, worker, LoopCounts())
            await updater.follow(lambda: None)
            transport.updates += round(mb_per_day * 1e6)
            await transport.change(subjects.TABLES, key, record(2, names[-1]))
            assert updater.take_updates() == (None, None)
            waits = updater.status()["update_waits"]
            assert "deeper blocks for a table" in waits["reason"]
            await eventually(lambda: updater.table.cuts == tuple(names))
            engine, table = updater.take_updates()
            assert engine.prefix.blocks_there == (4, 4)
            assert table.cuts == tuple(names)
            return updater.status()["update_waits"]

    assert asyncio.run(work()) is None
    assert decoded(transport) == []


def decoded(transport):
    """Refusals that were published."""
    events = [decode_update_event(body).event for _, body in transport.published]
    return [event for event in events if event.endswith(("refused", "failed"))]
