"""The pull consumer: at once, everything, again when it was not acknowledged, and after a broker's death."""

import asyncio
import contextlib

import pytest
from nats.aio.msg import Msg
from nats.errors import NotJSMessageError
from waiting import eventually

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.broker_errors import flush
from runtime_edge.formats import subjects
from runtime_server.broker import consumer
from runtime_server.broker.consumer import HeldMessages, PullConsumer, delivery

PARTITION = subjects.partition("pi-1")
SUBJECT = subjects.frames("pi-1")


@contextlib.asynccontextmanager
async def reading(hub, partition=PARTITION, acknowledge=True, held=None):
    """A queue of messages fed by a consumer in its own task."""
    found = asyncio.Queue()

    async def read():
        async for message in PullConsumer(hub.client, partition, held).messages():
            if acknowledge:
                await message.ack()
            await found.put(message)

    task = asyncio.create_task(read())
    try:
        yield found
    finally:
        await asyncio.wait_for(cancel_all([task]), 5.0)


async def take(found, count, timeout_s=10.0):
    return [await asyncio.wait_for(found.get(), timeout_s) for _ in range(count)]


def test_a_message_is_handed_out_at_once_though_the_batch_is_not_full(play):
    async def work(hub):
        requests = []

        async def on_request(message):
            requests.append(message)

        await hub.client.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", cb=on_request)
        async with reading(hub) as found:
            for number in range(5):
                await hub.stream.publish(SUBJECT, b"%d" % number)
                await take(found, 1)
            return len(requests)

    assert play(work) < 5, "each message came only when a request had expired"


def test_more_than_a_batch_comes_in_order_and_once(play):
    count = 3 * consumer.BATCH + 5

    async def work(hub):
        for number in range(count):
            await hub.stream.publish(SUBJECT, b"%d" % number)
        async with reading(hub) as found:
            received = [int(message.data) for message in await take(found, count)]
            await hub.stream.publish(SUBJECT, b"last")
            (last,) = await take(found, 1)
            return received, last.data

    assert play(work) == (list(range(count)), b"last")


def test_other_partitions_are_left_alone(play):
    async def work(hub):
        other = next(name for name in map("pi-{}".format, range(99)) if subjects.partition(name) != PARTITION)
        await hub.stream.publish(subjects.frames(other), b"other")
        await hub.stream.publish(SUBJECT, b"own")
        async with reading(hub) as found:
            return [message.data for message in await take(found, 1)], found.qsize()

    assert play(work) == ([b"own"], 0)


async def nothing_is_unacknowledged(hub):
    return not (await hub.stream.consumer_info(subjects.STREAM, f"server-{PARTITION}")).num_ack_pending


def test_what_was_not_acknowledged_comes_again_to_the_next_reader(play):
    async def work(hub):
        for number in range(3):
            await hub.stream.publish(SUBJECT, b"%d" % number)
        async with reading(hub, acknowledge=False, held=HeldMessages(1.0)) as found:
            messages = await take(found, 3)
            await messages[1].ack()
        await flush(hub.client)
        async with reading(hub, held=HeldMessages(1.0)) as found:
            again = sorted(message.data for message in await take(found, 2))
            await eventually(lambda: nothing_is_unacknowledged(hub))
            return again, found.qsize()

    assert play(work) == ([b"0", b"2"], 0)


def test_what_is_held_is_not_delivered_again_and_what_was_let_go_is(play):
    async def work(hub):
        await hub.stream.publish(SUBJECT, b"slow")
        await hub.stream.publish(SUBJECT, b"lost")
        held = HeldMessages(1.0)
        keeper = asyncio.create_task(held.keep())
        async with reading(hub, acknowledge=False, held=held) as found:
            slow, lost = await take(found, 2)
            held.release(lost)
            again = []
            for _ in range(3):  # each time after as long as the broker waits for a word
                again += await take(found, 1)
                held.release(again[-1])
            await slow.ack()
            held.release(slow)
            await cancel_all([keeper])
            return [message.data for message in again]

    assert play(work) == [b"lost"] * 3


def test_a_device_cannot_pass_a_frame_off_as_a_word_of_the_broker(play):
    async def work(hub):
        await hub.stream.publish(SUBJECT, b"poison", headers={"Status": "404"})
        await hub.stream.publish(SUBJECT, b"next")
        async with reading(hub) as found:
            return [message.data for message in await take(found, 2)]

    assert play(work) == [b"poison", b"next"]


def test_it_goes_on_when_the_broker_was_restarted(play, broker):
    async def work(hub):
        async with reading(hub) as found:
            await hub.stream.publish(SUBJECT, b"before")
            await take(found, 1)
            await broker.stop()
            await broker.start()
            await eventually(lambda: hub.client.is_connected)
            await hub.stream.publish(SUBJECT, b"after")
            (message,) = await take(found, 1, 25.0)
            return message.data

    assert play(work) == b"after"


def test_place_and_deliveries_of_a_message_are_what_the_library_reads(play):
    async def work(hub):
        held = HeldMessages(ack_wait_s=0.5)
        async with reading(hub, acknowledge=False, held=held) as found:
            for _ in range(3):
                await hub.stream.publish(SUBJECT, b"frame")
            messages = await take(found, 5)  # the first ones come again
        return [(delivery(message), message.metadata) for message in messages]

    read = play(work)
    assert [own for own, _ in read] == [(known.sequence.stream, known.num_delivered) for _, known in read]
    assert {own.times for own, _ in read} == {1, 2}


@pytest.mark.parametrize("reply", ["", "_INBOX.x", "$JS.ACK.S.C.one.2.3.4.5"])
def test_what_came_out_of_no_stream_has_no_place(reply):
    with pytest.raises(NotJSMessageError):
        delivery(Msg(_client=None, subject=SUBJECT, reply=reply))


def test_a_reply_that_names_domain_and_account_is_read_like_one_without():
    message = Msg(_client=None, subject=SUBJECT, reply="$JS.ACK.hub.ACCOUNT.S.C.2.70.7.1700000000000000000.0.token")
    assert delivery(message) == (message.metadata.sequence.stream, message.metadata.num_delivered) == (70, 2)
