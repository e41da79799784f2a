"""The emulated link: what it delays, in virtual time, and that an outage loses nothing."""

import asyncio
import itertools

import pytest
from virtual_time import VirtualTime

from runtime_server.harness.relay import LinkState, Relay


def through(state, work):
    """What `work(reader, writer, relay)` gives on a connection to an echo server behind a relay, and the seconds."""
    time = VirtualTime()

    async def run():
        async def echo(reader, writer):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        relay = Relay(server.sockets[0].getsockname()[:2], clock=time.clock, sleep=time.sleep)
        relay.state = state
        await relay.start()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            try:
                began = time.seconds
                found = await asyncio.wait_for(work(reader, writer, relay), 30)
                return found, time.seconds - began
            finally:
                writer.close()
                await writer.wait_closed()
        finally:
            await relay.stop()
            server.close()
            await server.wait_closed()

    return asyncio.run(run())


async def there_and_back(reader, writer, size):
    writer.write(bytes(range(256)) * (size // 256))
    data = await reader.readexactly(size)
    assert data == bytes(range(256)) * (size // 256)


def test_both_ways_are_delayed_and_the_order_stays_under_jitter():
    _, seconds = through(LinkState(40.0, 20.0), lambda reader, writer, relay: there_and_back(reader, writer, 25_600))
    assert seconds > 0.04


def test_both_rates_hold():
    state = LinkState(uplink_mbps=4.0, downlink_mbps=8.0)
    _, seconds = through(state, lambda reader, writer, relay: there_and_back(reader, writer, 51_200))
    assert seconds > 51_200 * 8 / 4e6


def test_what_passes_is_noted_with_the_time_it_was_on_the_link():
    state = LinkState(uplink_mbps=4.0, downlink_mbps=8.0)

    async def work(reader, writer, relay):
        relay.passages = []
        await there_and_back(reader, writer, 51_200)
        return relay.passages

    passages, _ = through(state, work)
    for way, mbps in (("up", 4.0), ("down", 8.0)):
        own = [one for one in passages if one.way == way]
        assert sum(one.bytes for one in own) == 51_200
        assert sum(one.ends - one.begins for one in own) == pytest.approx(51_200 * 8 / (mbps * 1e6))
        assert all(before.ends <= after.begins for before, after in itertools.pairwise(own))


def test_an_outage_holds_what_is_sent_until_it_is_over():
    async def work(reader, writer, relay):
        await there_and_back(reader, writer, 256)
        relay.state = LinkState(outage=True)
        sent = asyncio.create_task(there_and_back(reader, writer, 25_600))
        done, _ = await asyncio.wait({sent}, timeout=0.3)
        assert not done
        relay.state = LinkState()
        await sent
        assert relay.passed == {"up": 25_856, "down": 25_856}

    through(LinkState(), work)


def test_what_is_sent_first_arrives_first_on_a_thin_link():
    """Otherwise two pings with filler between them would be answered together, as over a fast link."""

    async def work(reader, writer, relay):
        writer.write(bytes(1500))
        await reader.readexactly(6)
        first = relay.passed["down"]
        await reader.readexactly(1494)
        return first

    first, seconds = through(LinkState(uplink_mbps=0.15), work)
    assert first < 750
    assert seconds > 0.5 * 1500 * 8 / 0.15e6
