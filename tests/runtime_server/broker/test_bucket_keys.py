"""The keys of a bucket are all that were put, also when they are asked for at once."""

import asyncio

from runtime_edge.formats import subjects
from runtime_server.broker.bucket_keys import bucket_keys
from runtime_server.broker.hub import Hub


def test_every_key_is_listed_once_and_an_empty_bucket_has_none(play):
    async def work(hub):
        bucket = await hub.stream.key_value(subjects.LEARNT)
        empty = await bucket_keys(hub.stream, subjects.LEARNT)
        for name in ("pi-2", "pi-1", "pi-2"):
            await bucket.put(name, b"x")
        return empty, await bucket_keys(hub.stream, subjects.LEARNT)

    assert play(work) == ([], ["pi-1", "pi-2"])


def test_a_report_is_there_for_whoever_asks_the_moment_it_is_put(play, broker):
    """The library's own listing is empty now and then while the last key is on its way."""

    async def work(hub):
        bucket = await hub.stream.key_value(subjects.PRESENCE)
        await bucket.put("pi-1", b"{}")
        others = [Hub(broker.url, f"operator-{number}") for number in range(20)]
        await asyncio.gather(*(other.connect() for other in others))
        try:
            return await asyncio.gather(*(other.presence() for other in others))
        finally:
            await asyncio.gather(*(other.close() for other in others))

    assert play(work) == [{"pi-1": {}}] * 20


def test_a_device_whose_report_was_deleted_is_not_there(play):
    async def work(hub):
        bucket = await hub.stream.key_value(subjects.PRESENCE)
        await bucket.put("pi-1", b"{}")
        await bucket.put("pi-2", b"{}")
        await bucket.delete("pi-1")
        return await hub.presence()

    assert play(work) == {"pi-2": {}}
