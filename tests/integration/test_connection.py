"""The device's link on a real broker: answers, watches and objects, over the broker's death as well."""

import asyncio
import contextlib
import random
import types

import harness
import nats
import pytest
from waiting import eventually as until

from runtime_edge.base.broker_errors import flush
from runtime_edge.errors import FormatError, LinkError, UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.wire import Reply, encode_reply
from runtime_edge.transport.connection import Connection
from runtime_server.harness.relay import LinkState, Relay


@contextlib.asynccontextmanager
async def linked(broker, late=lambda reply: None, **options):
    connection = Connection(broker.url, "pi-1", **options)
    connection.on_late_reply(late)
    await connection.connect()
    await connection.value(subjects.TABLES, "any")  # the broker has taken in whatever the link said before
    try:
        yield connection
    finally:
        await asyncio.wait_for(connection.close(), 5.0)


def expect(connection, window, deadline_s):
    answer = asyncio.get_running_loop().create_future()
    connection.expect(window, deadline_s, answer.set_result)
    return answer


async def answer_all(hub, status="ok"):
    """A server that answers every frame the moment it is published."""

    async def on_frame(message):
        inbox = subjects.read_envelope(message.headers, message.subject).reply
        if inbox:
            window = int(inbox.rsplit(".", 1)[-1])
            await hub.client.publish(inbox, encode_reply(Reply(window, 1, status, 5, message.data[:64])))

    await hub.subscribe("act.>", on_frame)


def test_each_window_gets_its_own_answer_and_late_ones_go_to_the_callback(play, broker):
    late = []

    async def work(hub):
        await answer_all(hub)
        async with linked(broker, late.append) as connection:
            futures = {window: expect(connection, window, 0.0 if window == 3 else 20.0) for window in range(8)}
            assert await futures.pop(3) is None
            await asyncio.gather(
                *(
                    harness.stored(connection, f"pi-1.boot.{window}", window, b"frame %d" % window)
                    for window in reversed(range(9))
                )
            )
            await until(lambda: len(late) == 2)
            return {window: (await future).embedding for window, future in futures.items()}

    assert play(work) == {window: b"frame %d" % window for window in range(8) if window != 3}
    assert sorted(reply.window for reply in late) == [3, 8]


def test_a_frame_without_a_number_is_not_answered(play, broker):
    late = []

    async def work(hub):
        await answer_all(hub)
        async with linked(broker, late.append) as connection:
            future = expect(connection, 5, 20.0)
            await harness.stored(connection, "pi-1.earlier.5", None, b"of an earlier boot")
            later = expect(connection, 6, 20.0)
            await harness.stored(connection, "pi-1.boot.6", 6, b"one with a number")
            assert (await later).embedding == b"one with a number"
            return future.done()

    assert play(work) is False
    assert late == []


def test_garbage_in_the_inbox_is_counted(play, broker):
    async def work(hub):
        inboxes = []

        async def on_frame(message):
            inboxes.append(subjects.read_envelope(message.headers, message.subject).reply)

        await hub.client.subscribe("act.>", cb=on_frame)
        await hub.client.flush()
        async with linked(broker) as connection:
            await harness.stored(connection, "pi-1.boot.0", 0, b"frame")
            await until(lambda: inboxes)
            for data in (b"", b"garbage", b"\x97\x03\x00\x01\xa2ok\x00\x90"):
                await hub.client.publish(inboxes[0], data)
            await until(lambda: connection.bad_replies == 3)
            return connection.connected

    assert play(work) is True


def test_a_watch_gives_the_present_value_then_changes_and_goes_on_after_the_brokers_death(play, broker):
    seen = []

    async def on_change(key, value):
        seen.append((key, value))

    async def work(hub):
        bucket = await hub.stream.key_value(subjects.TABLES)
        for value in (b"1", b"2", b"3"):
            await bucket.put("rpi4", value)
        async with linked(broker) as connection:
            await connection.watch(subjects.TABLES, ["rpi4", "rpi4.pi-1"], on_change)
            await until(lambda: len(seen) == 1)
            await bucket.put("rpi4.pi-1", b"own")
            await bucket.put("m2", b"not for us")
            await until(lambda: len(seen) == 2)
            for _ in range(2):
                await broker.stop()
                await broker.start()
                await until(lambda: connection.connected and hub.client.is_connected)
            await bucket.put("rpi4", b"after")
            await until(lambda: ("rpi4", b"after") in seen)
            await bucket.put("rpi4", b"last")
            await until(lambda: ("rpi4", b"last") in seen)

    play(work)
    assert seen[:2] == [("rpi4", b"3"), ("rpi4.pi-1", b"own")]
    assert {value for key, value in seen if key == "rpi4"} == {b"3", b"after", b"last"}, "older values came again"
    assert seen.count(("rpi4", b"after")) == 1, "watchers of former connections still watch"


def test_what_is_older_than_the_present_value_is_not_news(play, broker):
    seen = []

    async def on_change(key, value):
        seen.append(value)

    async def work(hub):
        bucket = await hub.stream.key_value(subjects.TABLES)
        for value in (b"1", b"2"):
            await bucket.put("rpi4", value)
        async with linked(broker) as connection:
            await connection.watch(subjects.TABLES, ["rpi4"], on_change)
            await until(lambda: seen == [b"2"])
            for headers in ({"Nats-Sequence": "1"}, {"Nats-Sequence": "2"}, {"Nats-Sequence": "new"}, None):
                await hub.client.publish(subjects.news(subjects.TABLES, "rpi4"), b"old", headers=headers)
            await bucket.delete("rpi4")
            await bucket.put("rpi4", b"3")
            await until(lambda: b"3" in seen)

    play(work)
    assert seen == [b"2", b"3"]


def test_news_that_got_lost_is_found_again(play, broker):
    seen = []

    async def on_change(key, value):
        seen.append(value)

    async def work(hub):
        bucket = await hub.stream.key_value(subjects.TABLES)
        await bucket.put("rpi4", b"1")
        async with linked(broker, recheck_s=0.2) as connection:
            await connection.watch(subjects.TABLES, ["rpi4"], on_change)
            await until(lambda: seen == [b"1"])
            config = (await hub.stream.stream_info(subjects.bucket_stream(subjects.TABLES))).config
            config.republish = None  # nobody is told any more
            await hub.stream.update_stream(config)
            await bucket.put("rpi4", b"2")
            await until(lambda: len(seen) == 2)

    play(work)
    assert seen == [b"1", b"2"]


def test_a_change_that_cannot_be_handled_now_is_tried_again(play, broker):
    attempts = []

    async def on_change(key, value):
        attempts.append(value)
        if len(attempts) == 1:
            raise LinkError("the network went away")

    async def work(hub):
        await (await hub.stream.key_value(subjects.RELEASES)).put("rpi4", b"release")
        async with linked(broker) as connection:
            await connection.watch(subjects.RELEASES, ["rpi4"], on_change)
            await until(lambda: len(attempts) == 2)

    play(work)
    assert attempts == [b"release", b"release"]


@pytest.mark.parametrize(("downlink_mbps", "pieces", "most_requests"), [(None, 64, 12), (1.5, 3, 3)])
def test_pieces_of_an_object_come_several_at_a_time_unless_the_link_is_thin(
    play, broker, downlink_mbps, pieces, most_requests
):
    good, requests = random.Random(0).randbytes(pieces * 131_072), []

    async def work(hub):
        store = await hub.stream.object_store(subjects.BUNDLES)
        await store.put("assets/other", b"x")
        await store.put("assets/good", good)
        relay = Relay(("127.0.0.1", int(broker.url.rpartition(":")[2])))
        await relay.start()
        try:
            async with linked(types.SimpleNamespace(url=f"nats://127.0.0.1:{relay.port}")) as connection:

                async def note(message):
                    requests.append(message.data)

                await hub.subscribe(f"$JS.API.DIRECT.GET.OBJ_{subjects.BUNDLES}", note)
                relay.state = LinkState(downlink_mbps=downlink_mbps)
                assert await connection.fetch("assets/good", len(good)) == good
                await flush(hub.client)
        finally:
            await relay.stop()

    play(work)
    assert pieces / 16 <= len(requests) <= most_requests
    if downlink_mbps:
        assert len(requests) == pieces


def test_objects_are_bounded_and_damage_is_told_from_absence(play, broker):
    async def work(hub):
        store = await hub.stream.object_store(subjects.BUNDLES)
        good = random.Random(0).randbytes(300_000)  # three pieces
        await store.put("assets/good", good)
        await store.put("assets/empty", b"")
        damaged = await store.put("assets/damaged", b"y" * 1000)
        await hub.stream.purge_stream(f"OBJ_{subjects.BUNDLES}", subject=f"$O.bundles.C.{damaged.nuid}")
        await hub.stream.publish(f"$O.bundles.C.{damaged.nuid}", b"z" * 1000)
        await store.put("assets/gone", b"z" * 1000)
        stream = f"OBJ_{subjects.BUNDLES}"
        last = (await hub.stream.stream_info(stream)).state.last_seq
        await hub.stream.delete_msg(stream, last - 1)  # the only piece of the last object
        async with linked(broker) as connection:
            assert await connection.fetch("assets/good", 300_000) == good
            assert await connection.fetch("assets/empty", 0) == b""
            with pytest.raises(FormatError, match="assets/damaged: damaged in the broker's store"):
                await connection.fetch("assets/damaged", 1000)
            with pytest.raises(FormatError, match="300000 bytes, more than the 299999"):
                await connection.fetch("assets/good", 299_999)
            with pytest.raises(LinkError, match="assets/nothing cannot be fetched"):
                await connection.fetch("assets/nothing", 10)
            with pytest.raises(LinkError, match="assets/gone cannot be fetched"):
                await connection.fetch("assets/gone", 1000)
            assert await connection.value(subjects.TABLES, "nothing") is None
            assert await connection.value("no-such-bucket", "nothing") is None

    play(work)


def test_without_a_broker_everything_says_so_and_closing_still_works():
    async def work():
        connection = Connection("nats://127.0.0.1:1", "pi-1")
        assert not connection.connected
        with pytest.raises(LinkError, match=r"is a broker .* there"):
            await connection.connect(0.5)
        with pytest.raises(LinkError):
            connection.send("pi-1.boot.0", 0, b"frame", lambda said: None, 0.5)
        with pytest.raises(LinkError):
            connection.ping(lambda seconds: None)
        await connection.publish("evt.pi-1", b"best effort")
        await connection.put(subjects.PRESENCE, b"best effort")
        await connection.close()
        with pytest.raises(UsageError, match="an address is such as"):
            Connection("nats://[", "pi-1")

    asyncio.run(work())


def test_a_bandwidth_probe_tells_the_round_trip_and_what_filler_adds_to_it(play, broker):
    async def work(hub):
        before = await hub.stream.stream_info(subjects.STREAM)
        async with linked(broker) as connection:
            filled = await connection.bandwidth_probe(bytes(16_384))
        after = await hub.stream.stream_info(subjects.STREAM)
        return filled, before.state.messages == after.state.messages

    (round_trip_s, transfer_s), nothing_stored = play(work)
    assert 0 < round_trip_s < 1
    assert 0 <= transfer_s < 1
    assert nothing_stored


def test_a_ping_is_answered_at_once_and_only_the_latest_counts(play, broker):
    trips, superseded = [], []

    async def work(hub):
        before = await hub.stream.stream_info(subjects.STREAM)
        async with linked(broker) as connection:
            connection.ping(superseded.append)
            connection.ping(trips.append)
            await until(lambda: trips)
            await harness.stored(connection, "pi-1.boot.0", 0, b"frame")
        after = await hub.stream.stream_info(subjects.STREAM)
        return after.state.messages - before.state.messages

    assert play(work) == 1, "a ping was stored"
    assert superseded == []
    assert len(trips) == 1
    assert 0 < trips[0] < 5


def test_a_frame_that_the_broker_does_not_store_says_why(broker):
    async def work():
        async with linked(broker) as connection:
            with pytest.raises(LinkError, match="no stream takes it"):
                await harness.stored(connection, "pi-1.boot.0", 0, b"frame")
            other = subjects.bucket_stream(subjects.TABLES)
            client = await nats.connect(broker.url)
            await client.jetstream().add_stream(name=other, subjects=["act.>"])
            with pytest.raises(LinkError, match="stored by KV_tables"):
                await harness.stored(connection, "pi-1.boot.0", 0, b"frame")
            await client.jetstream().delete_stream(other)
            await client.close()

    asyncio.run(work())


def test_what_waits_for_the_broker_learns_at_once_that_it_is_gone(broker):
    async def ignore(message):
        return

    async def work():
        async with linked(broker) as connection:
            client = await nats.connect(broker.url, allow_reconnect=False)
            await client.subscribe("act.>", cb=ignore)  # somebody takes the frame, but no stream stores it
            await flush(client)
            said = harness.stored(connection, "pi-1.boot.0", 0, b"frame", 60.0)
            with pytest.raises(LinkError):
                await harness.stored(connection, "pi-1.boot.1", 1, b"frame", 0.2)  # nobody answers the next one either
            assert not said.done()
            await broker.stop()
            with pytest.raises(LinkError, match="the connection was lost"):
                await asyncio.wait_for(said, 20.0)

    asyncio.run(work())


def test_a_bandwidth_probe_without_a_broker_is_one_error(play, broker):
    async def work(hub):
        async with linked(broker) as connection:
            await broker.stop()
            await until(lambda: not connection.connected)
            with pytest.raises(LinkError):
                await connection.bandwidth_probe(b"x")

    play(work)
