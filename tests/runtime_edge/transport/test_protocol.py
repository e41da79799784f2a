"""Both transports have what a device calls, with the same arguments."""

import inspect

import pytest

from runtime_edge.transport.connection import Connection
from runtime_edge.transport.in_memory import InMemoryTransport
from runtime_edge.transport.protocol import Transport

CALLS = [name for name, member in vars(Transport).items() if inspect.isfunction(member) and name[0] != "_"]
VALUES = [name for name, member in vars(Transport).items() if isinstance(member, property)]


def test_the_protocol_is_read():
    assert {"send", "watch", "fetch"} <= set(CALLS)
    assert VALUES == ["url", "connected", "trouble", "since_fetch_s", "counted_by"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("transport", [Connection, InMemoryTransport])
def test_every_call_is_as_the_protocol_says(transport, name):
    said, done = getattr(Transport, name), getattr(transport, name)
    assert inspect.signature(done) == inspect.signature(said)
    assert inspect.iscoroutinefunction(done) == inspect.iscoroutinefunction(said)


@pytest.mark.parametrize("name", VALUES)
def test_both_say_how_they_are(name):
    assert hasattr(InMemoryTransport(), name)
    assert hasattr(Connection("nats://127.0.0.1:1", "pi-1"), name)
