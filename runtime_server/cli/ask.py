"""One question to the broker from a command: connect, ask, disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runtime_edge.formats.credentials import Address
from runtime_server.broker.hub import Hub

_Result = TypeVar("_Result")


def ask(broker: Address, name: str, work: Callable[[Hub], Awaitable[_Result]]) -> _Result:
    """What `work` returns, given a connection of its own that the broker knows as `name`. Raises LinkError."""

    async def connected() -> _Result:
        async with Hub(broker, name) as hub:
            return await work(hub)

    return asyncio.run(connected())
