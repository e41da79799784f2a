"""The store of a broker that knew no accounts is one that a broker of today goes on with, alone or in a cluster."""

import asyncio
import contextlib

import nats.errors
import nats.js.errors
import pytest
from nats.js.api import AckPolicy, ConsumerConfig
from waiting import eventually

from runtime_edge.errors import FormatError, LinkError
from runtime_edge.formats import subjects
from runtime_server.broker.access import INCLUDED, Access
from runtime_server.broker.accounts import SERVER_ACCOUNT
from runtime_server.broker.broker_process import Broker, ClusterConfig
from runtime_server.broker.hub import Hub
from runtime_server.broker.upgrade import stored_config, upgrade_store
from runtime_server.harness.ports import free_ports

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def _brokers(directory, ports, access):
    """One for each pair of ports; without `access` they keep streams as earlier versions did."""
    count, made = len(ports) // 2, []
    for place in range(count):
        routes = tuple(f"127.0.0.1:{port}" for port in ports[count:] if port != ports[count + place])
        cluster = ClusterConfig(f"b{place}", ports[count + place], routes) if count > 1 else None
        state = directory / (f"broker-b{place}" if cluster else "broker")
        made.append(Broker(state, port=ports[place], access=access, cluster=cluster))
    return made


@contextlib.asynccontextmanager
async def _running(brokers):
    await asyncio.gather(*(broker.start() for broker in brokers))
    hub = Hub(brokers[0].address, "server")
    try:
        yield hub
    finally:
        await hub.close()
        await asyncio.gather(*(broker.stop() for broker in brokers))


async def _fill(hub):
    for window in range(5):
        await hub.stream.publish(subjects.frames("pi-1"), b"frame %d" % window)
    await (await hub.stream.key_value(subjects.TABLES)).put("pi-1.rpi4", b"table")
    await (await hub.stream.object_store(subjects.BUNDLES)).put("assets/a", bytes(300_000))
    durable = ConsumerConfig(durable_name="server-0", ack_policy=AckPolicy.EXPLICIT)
    await hub.stream.add_consumer(subjects.STREAM, durable)
    pulled = await hub.stream.pull_subscribe("", "server-0", stream=subjects.STREAM)
    for message in await pulled.fetch(3):
        await message.ack_sync()


async def _found(hub):
    """What there is, once the brokers of a cluster have elected who leads each stream."""

    async def stored():
        with contextlib.suppress(nats.errors.Error, nats.js.errors.Error):
            return await _stored(hub)

    return await eventually(stored, "the brokers have elected their leaders")


async def _stored(hub):
    consumer = await hub.stream.consumer_info(subjects.STREAM, "server-0")
    table = await (await hub.stream.key_value(subjects.TABLES)).get("pi-1.rpi4")
    asset = await (await hub.stream.object_store(subjects.BUNDLES)).get("assets/a")
    state = (await hub.stream.stream_info(subjects.STREAM)).state
    return state.messages, state.last_seq, consumer.ack_floor.stream_seq, table.value, asset.data == bytes(300_000)


@pytest.mark.parametrize("brokers", [1, 3])
def test_what_an_earlier_version_kept_is_there_and_its_consumers_go_on(tmp_path, brokers):
    ports = free_ports(2 * brokers)

    async def work():
        async with _running(_brokers(tmp_path, ports, None)) as hub:
            await hub.connect(create=True, replicas=brokers)
            await _fill(hub)
            before = await _found(hub)
        access = Access(tmp_path)
        access.add("pi-1")
        upgraded = _brokers(tmp_path, ports, access)
        async with _running(upgraded) as hub:
            await upgraded[0].announced()
            await hub.connect(create=True, replicas=brokers)
            after = await _found(hub)
        async with _running(_brokers(tmp_path, ports, access)) as hub:
            await hub.connect(create=True, replicas=brokers)
            return before, after, await _found(hub)

    before, after, later = asyncio.run(work())
    assert before == (5, 5, 3, b"table", True)
    assert after == later == before


def test_a_store_is_upgraded_once_and_a_clusters_former_one_is_kept(tmp_path):
    for clustered in (False, True):
        store = tmp_path / str(clustered)
        assert not upgrade_store(store, clustered)
        (store / "$G" / "streams" / "KV_tables").mkdir(parents=True)
        (store / "$SYS" / "_js_").mkdir(parents=True)
        assert upgrade_store(store, clustered)
        assert (store / SERVER_ACCOUNT / "streams" / "KV_tables").is_dir()
        assert (store / "$G").is_dir() is clustered
        assert (store / "$SYS").is_dir() is not clustered
        assert not upgrade_store(store, clustered)


def test_a_streams_description_that_is_damaged_is_named(tmp_path):
    described = tmp_path / "meta.inf"
    described.write_bytes(b'{"Created": "2026-01-02", "name": "ACTIVATIONS"}')
    assert stored_config(described) == {"name": "ACTIVATIONS"}
    for damage in (b"", b"\xff", b"[1]", b"[" * 100_000):
        described.write_bytes(damage)
        with pytest.raises(FormatError, match=r"meta\.inf"):
            stored_config(described)


def test_an_earlier_versions_running_broker_is_not_told_what_it_does_not_know(tmp_path):
    access = Access(tmp_path)
    broker = Broker(tmp_path / "broker", port=free_ports(1)[0], access=access)

    async def work():
        async with _running([broker]):
            config = tmp_path / "broker" / "broker.conf"
            config.write_text(config.read_text().replace(INCLUDED, "access.conf"))
            with pytest.raises(LinkError, match="an earlier version's: restart the server"):
                access.reload()

    asyncio.run(work())
