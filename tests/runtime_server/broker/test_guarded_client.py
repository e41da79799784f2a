"""Headers and subjects that no client of the broker's library would send: the server reads on."""

import asyncio
import base64
import contextlib
import json

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.formats import subjects
from runtime_server.broker.access import Access
from runtime_server.broker.broker_process import Broker
from runtime_server.broker.consumer import PullConsumer
from runtime_server.broker.guarded_client import header_lines, without_status
from runtime_server.broker.hub import Hub
from runtime_server.broker.stored_frames import stored_frames

pytestmark = pytest.mark.timeout(60)
ATTACKER, NEIGHBOUR = "pi-3", "pi-1"
"""Of one partition."""
ODD = [
    b"NATS/1.0\r\nStatus: 100\r\n\r\n",
    b"NATS/1.0\r\nStatus: 404\r\nDescription: No Messages\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 100 Flow\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 409 Server Shutdown\r\n\r\n",
    b"NATS/1.0 \xff\xff\xff \xff\r\n\r\n",
    b"NATS/1.0 503",
    b"NATS/1.0",
    b"NATS/1.0 \r\n",
    b"NATS/1.0\r\n\xff\xfe: \xff\r\nno colon\r\n: no name\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: x\r\nNats-Time-Stamp: x\r\nNats-Stream: x\r\nNats-Subject: x\r\n\r\n",
    b"NATS/1.0\r\nKV-Operation: x\r\nNats-Marker-Reason: x\r\n\r\n",
    b"NATS/1.0\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
]


async def _publish_raw(broker, seed, subject, headers, payload):
    """As the device, byte for byte."""
    reader, writer = await asyncio.open_connection(broker.host, broker.port)
    pair = nkeys.from_seed(bytearray(seed.encode()))
    nonce = json.loads((await reader.readline())[5:])["nonce"]
    signature = base64.urlsafe_b64encode(pair.sign(nonce.encode())).rstrip(b"=").decode()
    options = {"nkey": pair.public_key.decode(), "sig": signature, "headers": True, "verbose": False, "protocol": 1}
    sizes = f"{len(headers)} {len(headers) + len(payload)}"
    writer.write(f"CONNECT {json.dumps(options)}\r\nHPUB {subject} {sizes}\r\n".encode())
    writer.write(headers + payload + b"\r\nPING\r\n")
    while (await reader.readline()).strip() != b"PONG":
        pass
    writer.close()


@pytest.fixture
def as_server(tmp_path, free_port):
    """`as_server(work)`: the result of `await work(hub, publish_raw)`, with a broker that lets in two devices."""
    access = Access(tmp_path)
    access.set_policy(True, "127.0.0.1")
    seeds = {name: access.add(name) for name in (ATTACKER, NEIGHBOUR)}
    broker = Broker(tmp_path / "broker", port=free_port, access=access)

    def run(work):
        async def connected():
            hub = Hub(broker.address, "server")
            try:
                await broker.start()
                await hub.connect(create=True)
                await work(hub, lambda name, *message: _publish_raw(broker, seeds[name], *message))
            finally:
                await hub.close()
                await broker.stop()

        return asyncio.run(connected())

    return run


def test_a_report_with_odd_headers_is_no_more_than_that(as_server):
    async def work(hub, publish):
        await publish(NEIGHBOUR, f"$KV.presence.{NEIGHBOUR}", b"NATS/1.0\r\n\r\n", b'{"bundle": "x"}')
        for payload in (b"{}", b""):
            for headers in ODD:
                await publish(ATTACKER, f"$KV.presence.{ATTACKER}", headers, payload)
                await publish(ATTACKER, f"$KV.learnt.{ATTACKER}", headers, payload)
                found = await asyncio.wait_for(hub.presence(), 5.0)
                assert found[NEIGHBOUR] == {"bundle": "x"}, headers
                await asyncio.wait_for(hub.learnt(), 5.0)

    as_server(work)


def test_frames_behind_one_with_odd_headers_are_read_and_read_again(as_server):
    neighbours = subjects.frames(NEIGHBOUR)

    async def work(hub, publish):
        for headers in ODD:
            for payload in (b"frame", b""):
                await publish(ATTACKER, subjects.frames(ATTACKER), headers, payload)
        await publish(NEIGHBOUR, neighbours, b"NATS/1.0\r\n\r\n", b"frame")
        stored = (await hub.stream.stream_info(subjects.STREAM)).state.messages
        assert stored > len(ODD)
        async with contextlib.aclosing(PullConsumer(hub.client, subjects.partition(ATTACKER)).messages()) as messages:
            for _ in range(stored):
                message = await asyncio.wait_for(anext(messages), 5.0)
        assert message.subject == neighbours
        again = [one async for batch in stored_frames(hub, "act.>", 1, 5) for one in batch]
        assert len(again) == stored
        assert again[-1].subject == neighbours

    as_server(work)


@pytest.mark.parametrize(
    "subject", [b"act.0.\xff", "act.0.\u202eevil".encode(), b"act.0.\x1b[2J", b"act.0." + b"x" * 4000]
)
def test_where_anyone_may_publish_an_odd_subject_ends_nothing(play, subject):
    async def work(hub):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(hub.url.rpartition(":")[2]))
        await reader.readline()
        writer.write(b"CONNECT {}\r\nPUB " + subject + b" 5\r\nframe\r\nPING\r\n")
        while b"PONG" not in await reader.readline():
            pass
        writer.close()
        await hub.stream.publish(subjects.frames(NEIGHBOUR), b"frame")
        found = [one.subject async for batch in stored_frames(hub, "act.>", 1, 5) for one in batch]
        assert len(found) == 2
        assert found[-1] == subjects.frames(NEIGHBOUR)

    play(work)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"NATS/1.0" + tail))
def test_any_headers_are_lines_without_a_status(headers):
    kept = without_status(headers)
    assert kept.startswith(b"NATS/1.0\r\n")
    assert kept.endswith(b"\r\n")
    names = [line.partition(b":")[0].strip() for line in kept.split(b"\r\n")]
    assert not {b"Status", b"Description"} & set(names)
    assert without_status(kept) == kept


def test_headers_of_a_device_that_means_well_are_left_as_they_are():
    headers = b"NATS/1.0\r\nNats-Msg-Id: pi-1.boot.7\r\nSsc-Reply: _INBOX.pi-1.c.7\r\n\r\n"
    assert without_status(headers) == headers
    assert without_status(b"NATS/1.0 100 Idle\r\n" + headers[10:]) == headers


NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x85\xa0"), max_size=20)


@given(st.lists(st.tuples(NAMES, VALUES)), st.sampled_from([":", ": ", " :\t"]))
def test_header_lines_are_names_and_values(pairs, colon):
    block = "".join(f"{name}{colon}{value}\r\n" for name, value in pairs).encode()
    assert header_lines(block + b"\r\n") == {name: value.strip(" ") for name, value in pairs}


@pytest.mark.parametrize(
    ("line", "expected"),
    [(b"no colon", {}), (b"two words: x", {}), (b"\xff: x", {}), (b"a\x1cb: x", {}), (b"a: \xff", {"a": "\ufffd"})],
)
def test_a_header_line_that_is_none_is_left_out(line, expected):
    assert header_lines(b"b: c\r\n" + line + b"\r\n\r\n") == {"b": "c", **expected}
