"""Numbers only grow, whatever the clock does, and what an earlier version has signed is numbered once."""

import asyncio
import json

import pytest

from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.records.envelope import open_record, seal
from runtime_server.broker.record_writer import SignedRecordWriter

KEY = "_all.rpi4"
BODY = b'{"any": 1}'


@pytest.fixture
def writer(signing_key, tmp_path):
    """`await writer(hub, *times)`: the number given at each time of the clock, ms."""

    async def put(hub, *times, state=tmp_path, secret=signing_key):
        numbers = []
        for now in times:
            await SignedRecordWriter(state, lambda now=now: now).put(hub.stream, "table", KEY, BODY, secret)
            data = await hub.table("rpi4")
            numbers.append(open_record(data, "table", KEY, secret and secret.public, "test").number)
        return numbers

    return put


async def put_back(hub, data, key=KEY):
    await (await hub.stream.key_value(subjects.TABLES)).put(key, data)


def test_a_number_is_the_clocks_or_one_more_than_the_highest_in_the_broker(play, writer):
    assert play(lambda hub: writer(hub, 1000, 1000, 500, 2000, state=None)) == [1000, 1001, 1002, 2000]


def test_what_another_key_signed_says_nothing_of_numbers(play, writer, signing_key):
    async def work(hub):
        await put_back(hub, seal("table", KEY, 1 << 52, BODY, minisign.SecretKey(b"\1" * 8, bytes(32))))
        first = await writer(hub, 1000)
        await put_back(hub, seal("table", "pi-1.rpi4", 1 << 52, BODY, signing_key))
        return first, await writer(hub, 900), await writer(hub, 800, secret=None)

    assert play(work) == ([1000], [1001], [800])


def test_the_highest_is_known_after_a_restart_when_the_broker_has_lost_it(play, writer, signing_key):
    async def work(hub):
        await writer(hub, 5000)
        await put_back(hub, seal("table", KEY, 10, BODY, signing_key))
        return await writer(hub, 20), await writer(hub, 20, state=None)

    assert play(work) == ([5001], [5002])


def test_a_record_can_be_put_where_one_was_deleted(play, writer):
    async def work(hub):
        await writer(hub, 1000)
        await (await hub.stream.key_value(subjects.TABLES)).delete(KEY)
        return await writer(hub, 10)

    assert play(work) == [1001]


def test_two_who_write_at_once_give_two_numbers(play, signing_key):
    async def work(hub):
        writers = [SignedRecordWriter(None, lambda: 7) for _ in range(4)]
        await asyncio.gather(*(one.put(hub.stream, "table", KEY, BODY, signing_key) for one in writers))
        history = await (await hub.stream.key_value(subjects.TABLES)).history(KEY)
        return [open_record(entry.value, "table", KEY, signing_key.public, "test").number for entry in history]

    assert play(work) == [7, 8, 9, 10]


def test_what_an_earlier_version_signed_is_numbered_once(play, signing_key, tmp_path, caplog):
    earlier = json.dumps({"table": BODY.decode(), "signature": minisign.sign(BODY, signing_key, "any")}).encode()
    foreign = json.dumps({"table": BODY.decode()}).encode()

    async def work(hub):
        await put_back(hub, earlier)
        await put_back(hub, foreign, "pi-1.rpi4")
        await SignedRecordWriter(tmp_path, lambda: 1000).upgrade(hub.stream, signing_key)
        first, own = await hub.table("rpi4"), await hub.table("rpi4", "pi-1")
        await put_back(hub, earlier)
        await SignedRecordWriter(tmp_path, lambda: 2000).upgrade(hub.stream, signing_key)
        return first, own, await hub.table("rpi4")

    first, own, last = play(work)
    record = open_record(first, "table", KEY, signing_key.public, "test")
    assert (record.number, record.body) == (1000, BODY)
    assert own == foreign, "nobody has signed it"
    assert last == earlier, "put back later: it must not get a new number"
    assert "table _all.rpi4: number: 0 is older than 1000" in caplog.text
