"""A flush covers what came before it, although the library writes its ping first."""

import asyncio

import nats.errors
import pytest
from nats.aio.client import Client

from runtime_edge.base.broker_errors import disconnect, flush, is_refusal, names_setting, reason
from runtime_edge.formats.wire import MAX_FRAME_BYTES


@pytest.mark.parametrize("operation", ["SUB", "PUB"])
def test_the_broker_has_handled_what_came_before_a_flush_when_it_returns(noting_broker, operation):
    async def work():
        async with noting_broker() as (url, said):
            client = Client()
            await client.connect(url)
            said.clear()
            await (client.subscribe("evt.pi-1") if operation == "SUB" else client.publish("evt.pi-1", b"event"))
            await flush(client)
            answered = list(said)
            await disconnect(client)
            return answered

    answered = asyncio.run(work())
    assert "PING" in answered[answered.index(operation) :], answered


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        ("nats: 'maximum connections exceeded'", "raise max_connections in its configuration"),
        ("nats: 'maximum account active connections exceeded'", "raise max_connections in the limits of the account"),
        ("nats: maximum subscriptions exceeded", "raise max_subscriptions in its configuration"),
        ("nats: 'Maximum Payload Violation'", f"set max_payload: {MAX_FRAME_BYTES} in its configuration"),
        ("nats: maximum payload exceeded", f"set max_payload: {MAX_FRAME_BYTES} in its configuration"),
        ("nats: 'maximum control line exceeded'", "raise max_control_line in its configuration"),
    ],
)
def test_a_limit_of_the_broker_is_named_by_its_setting(said, setting):
    error = nats.errors.Error(said)
    assert reason(error).endswith(setting)
    assert is_refusal(error)
    assert names_setting(error)


def test_what_goes_by_itself_is_not_due_to_a_setting():
    for said in (nats.errors.TimeoutError(), nats.errors.Error("nats: stale connection")):
        assert not names_setting(said)
