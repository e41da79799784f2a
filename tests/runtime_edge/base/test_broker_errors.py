"""A flush covers what came before it, although the library writes its ping first."""

import asyncio

import pytest
from nats.aio.client import Client

from runtime_edge.base.broker_errors import disconnect, flush


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
