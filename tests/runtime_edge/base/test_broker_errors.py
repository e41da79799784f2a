"""A flush covers what came before it, although the library writes its ping first."""

import asyncio

import nats.errors
import pytest
from nats.aio.client import Client

from runtime_edge.base.broker_errors import disconnect, flush, is_refusal, reason


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
        ("nats: 'maximum connections exceeded'", "max_connections in its configuration"),
        ("nats: 'maximum account active connections exceeded'", "max_connections in the limits of the account"),
        ("nats: maximum subscriptions exceeded", "max_subscriptions in its configuration"),
        ("nats: 'Maximum Payload Violation'", "max_payload in its configuration"),
        ("nats: maximum payload exceeded", "max_payload in its configuration"),
        ("nats: 'maximum control line exceeded'", "max_control_line in its configuration"),
    ],
)
def test_a_limit_of_the_broker_is_named_by_its_setting(said, setting):
    error = nats.errors.Error(said)
    assert reason(error).endswith(f": raise {setting}")
    assert is_refusal(error)
