"""Which tables a device takes, keeps and refuses."""

import asyncio

import pytest
from msgspec.structs import replace
from small_tables import always

from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.records.envelope import seal
from runtime_edge.formats.records.table import cuts_digest
from runtime_edge.formats.update_events import decode_update_event
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.table_updater import FirstTable
from runtime_edge.updates.update_reports import UpdateReports

OWN = subjects.table_key("rpi4", "pi-1")


@pytest.fixture
def tables(small_bundle):
    """Two for the bundle's cuts."""
    return [always(small_bundle, "rpi4", cut.name) for cut in small_bundle.manifest.info.cuts[1:3]]


async def starting(bundle, state, transport, counts=None):
    """What takes tables from then on."""
    config, store = DeviceConfig(device="pi-1", state=state, target="rpi4"), BundleStore(state, None)
    reports = UpdateReports(config, transport, counts or LoopCounts(), store.trials)
    first = FirstTable(config, transport, store, reports)
    return await first.choose(bundle, await first.records())


def record(table):
    return seal("table", OWN, 1, table.to_json(), None)


def test_a_table_that_comes_is_handed_over_once_and_used_by_the_next_run(small_bundle, tables, tmp_path):
    transport, ready = InMemoryTransport(), []

    async def work():
        updating = await starting(small_bundle, tmp_path, transport)
        assert updating.table == small_bundle.table("rpi4")
        await updating.follow(lambda: ready.append(updating.take()))
        for table in (*tables, tables[1]):
            await transport.change(subjects.TABLES, OWN, record(table))
        assert updating.take() is None
        return (await starting(small_bundle, tmp_path, None)).table

    assert asyncio.run(work()) == tables[1]
    assert ready == tables, "the same table again is nothing new"


def test_what_does_not_fit_is_refused_and_reported(small_bundle, tables, tmp_path):
    transport, counts = InMemoryTransport(), LoopCounts()
    wrong = [
        record(replace(tables[0], bundle_cuts=cuts_digest(["waveform", "elsewhere"]))),
        record(replace(tables[0], target="m2")),
        record(replace(tables[0], state=(replace(tables[0].state[0], name="battery"),))),
        b"{",
    ]

    async def work():
        updating = await starting(small_bundle, tmp_path, transport, counts)
        await updating.follow(lambda: None)
        for bad in wrong:
            await transport.change(subjects.TABLES, OWN, bad)
        return updating.take()

    assert asyncio.run(work()) is None
    assert counts.errors == {"TableError": 4}
    assert [decode_update_event(body).event for _, body in transport.published] == ["table_refused"] * 4


@pytest.mark.integration
def test_a_table_that_came_before_its_bundle_takes_over_with_it(small_bundle, tables, tmp_path, tiny_encoder):
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target

    options = CompileOptions([load_target("rpi4")], cuts="stem,down", calibration_windows=4)
    coming = compile_encoder(tiny_encoder, options, tmp_path / "coming")
    early = always(coming, "rpi4", "down")
    transport = InMemoryTransport()

    async def work():
        updating = await starting(small_bundle, tmp_path, transport)
        await updating.follow(lambda: None)
        await transport.change(subjects.TABLES, OWN, record(early))
        assert updating.take() is None, "it does not fit what runs"
        updating.turn_to(coming, updating.needed_for(coming))
        return updating.take()

    assert asyncio.run(work()) == early
