"""What the broker's library raises, and how to flush and close a connection of it."""

from __future__ import annotations

import asyncio
import contextlib

import nats.errors
import nats.js.errors
from nats.aio.client import Client

BROKER_ERRORS = (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError)
"""What the library raises when the broker is away, slow or refuses."""

_CLOSE_S = 2.0


async def flush(client: Client, timeout_s: int = 10) -> None:
    """Return once the broker has handled everything this client subscribed to or published before the call.

    The library writes a flush's ping at once, ahead of the subscriptions and messages that its own task has yet to
    write, so only the second ping is sure to come after them. Raises what the library raises; each ping may take
    `timeout_s`.
    """
    for _ in range(2):
        await client.flush(timeout_s)


async def disconnect(client: Client) -> None:
    """Close a connection in whatever state it is; one that was never begun cannot be closed."""
    if client.is_connected or client.is_connecting or client.is_reconnecting:
        # A handshake that failed can leave the library waiting for the end of a transport it no longer has.
        with contextlib.suppress(*BROKER_ERRORS):
            await asyncio.wait_for(client.close(), _CLOSE_S)


def reason(exc: Exception) -> str:
    """What to say of an error of the library; some have no text."""
    return str(exc) or type(exc).__name__
