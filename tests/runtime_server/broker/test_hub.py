"""What a server puts on the broker, read back with the library alone or with the device's own readers."""

import asyncio

import msgspec
import pytest
from example_records import adaptation
from msgspec.structs import replace
from reading import read_release, read_table

from runtime_edge.errors import LinkError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import MANIFEST
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.envelope import open_record
from runtime_server.broker.hub import STATUS_SUBJECT, Hub


def test_a_bundle_lands_in_the_object_store_once(play, small_bundle):
    async def work(hub):
        first, second = await hub.publish_bundle(small_bundle), await hub.publish_bundle(small_bundle)
        store = await hub.stream.object_store(subjects.BUNDLES)
        found = {}
        for block in small_bundle.manifest.info.blocks:
            reference = small_bundle.manifest.variant(block, "onnx-fp32").file
            found[reference] = (await store.get(subjects.asset_object(reference))).data
        manifest = (await store.get(subjects.manifest_object(small_bundle.digest))).data
        return first, second, found, manifest

    first, second, found, manifest = play(work)
    assert {reference: small_bundle.read(reference) for reference in found} == found
    assert manifest == (small_bundle.path / MANIFEST).read_bytes()
    assert first == sum(map(len, found.values())) + len(manifest)
    assert second == 0


def test_a_release_says_which_manifest_and_carries_its_signature(play, small_bundle, signing_key):
    async def work(hub):
        await hub.release(small_bundle, "rpi4", signing_key)
        await hub.release(small_bundle, "m2", signing_key, rollback=True)
        bucket = await hub.stream.key_value(subjects.RELEASES)
        return [(await bucket.get(target)).value for target in ("rpi4", "m2")]

    plain, back = (
        read_release(record, signing_key.public, target)
        for target, record in zip(("rpi4", "m2"), play(work), strict=True)
    )
    assert (plain.generation, plain.manifest, plain.rollback) == (1, small_bundle.digest, False)
    assert back.rollback
    minisign.verify((small_bundle.path / MANIFEST).read_bytes(), plain.signature, signing_key.public, "test")


def test_tables_go_to_a_target_or_to_one_device(play, small_bundle, signing_key):
    table = small_bundle.table("rpi4")

    async def work(hub):
        before = await hub.table("rpi4")
        await hub.put_table(table, signing_key)
        await hub.put_table(replace(table, hysteresis=0.5), signing_key, "pi-1")
        bucket = await hub.stream.key_value(subjects.TABLES)
        return before, await hub.table("rpi4"), (await bucket.get("pi-1.rpi4")).value

    before, everyone, one = play(work)
    assert before is None
    assert read_table(everyone, signing_key.public, "_all.rpi4") == table
    assert read_table(one, signing_key.public, "pi-1.rpi4").hysteresis == 0.5


def test_making_the_streams_again_changes_nothing(play, broker):
    async def work(hub):
        await hub.stream.publish("act.0.pi-1", b"frame")
        again = Hub(broker.url, "again")
        await again.connect(create=True)
        await again.close()
        return (await hub.stream.stream_info(subjects.STREAM)).state.messages

    assert play(work) == 1


def test_what_devices_write_to_remembers_no_ids_also_where_an_earlier_version_made_it(play, broker):
    async def work(hub):
        config = (await hub.stream.stream_info(subjects.STREAM)).config
        await hub.stream.update_stream(config.evolve(duplicate_window=600))
        again = Hub(broker.url, "again")
        await again.connect(create=True)
        await again.close()
        names = [subjects.STREAM, *(subjects.bucket_stream(name) for name in (subjects.PRESENCE, subjects.LEARNT))]
        return [(await hub.stream.stream_info(name)).config.duplicate_window for name in names]

    assert play(work) == [0.1] * 3


def test_presence_is_what_devices_put_and_garbage_is_left_out(play):
    async def work(hub):
        nobody = await hub.presence()
        bucket = await hub.stream.key_value(subjects.PRESENCE)
        await bucket.put("pi-1", b'{"windows_captured": 3}')
        await bucket.put("pi-2", b"{")
        await bucket.put("pi-3", b'{"a":' * 5000)
        await bucket.put("Odd_name", b"{}")
        return nobody, await hub.presence(), (await hub.last_reports()).unreadable

    nobody, found, unreadable = play(work)
    assert (nobody, found) == ({}, {"pi-1": {"windows_captured": 3}})
    assert sorted(unreadable) == ["Odd_name", "pi-2", "pi-3"]


def test_the_status_comes_from_whoever_serves(play):
    async def work(hub):
        with pytest.raises(LinkError, match="no server answers"):
            await hub.server_status()

        async def answer(message):
            await message.respond(msgspec.json.encode({"generation": 4}))

        await hub.subscribe(STATUS_SUBJECT, answer)
        return await hub.server_status()

    assert play(work) == {"generation": 4}


def test_the_broker_knows_of_a_subscription_once_it_is_made(noting_broker):
    async def ignore(message):
        pass

    async def work():
        async with noting_broker() as (url, said):
            hub = Hub(url, "test")
            await hub.connect()
            said.clear()
            await hub.subscribe("evt.pi-1", ignore)
            known = list(said)
            await hub.close()
            return known

    known = asyncio.run(work())
    assert "PING" in known[known.index("SUB") :], known


def test_no_broker_and_a_broker_that_is_not_ours_give_one_line(broker, small_bundle):
    async def nobody():
        with pytest.raises(LinkError, match="ssc server run"):
            await Hub("nats://127.0.0.1:1", "test").connect()

    async def stranger():
        hub = Hub(broker.url, "test")
        await hub.connect()
        requests = [
            hub.publish_bundle(small_bundle),
            hub.release(small_bundle, "rpi4", None),
            hub.put_table(small_bundle.table("rpi4"), None),
            hub.table("rpi4"),
            hub.presence(),
        ]
        for request in requests:
            with pytest.raises(LinkError, match=f"broker {broker.url}"):
                await request
        await hub.close()

    asyncio.run(stranger())
    asyncio.run(nobody())


def test_adaptations_go_to_one_device_or_to_a_target(play, signing_key):
    one, all_of_them = adaptation(), adaptation(created_by="another")

    async def work(hub):
        sizes = [
            await hub.put_adaptation(one, signing_key, "rpi4", "pi-1"),
            await hub.put_adaptation(all_of_them, signing_key, "rpi4", None),
        ]
        bucket = await hub.stream.key_value(subjects.ADAPTATIONS)
        return sizes, [(await bucket.get(key)).value for key in ("pi-1.rpi4", "_all.rpi4")]

    sizes, stored = play(work)
    assert sizes == [len(data) for data in stored]
    for data, key, expected in zip(stored, ("pi-1.rpi4", "_all.rpi4"), (one, all_of_them), strict=True):
        record = open_record(data, "adaptation", key, signing_key.public, "test")
        assert Adaptation.from_json(record.body, "test") == expected
