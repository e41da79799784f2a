"""The errors of the broker's library, and how to flush and close one of its connections."""

from __future__ import annotations

import asyncio
import contextlib

import nats.errors
import nats.js.errors
from nats.aio.client import Client

BROKER_ERRORS = (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError)
"""What the library raises when the broker is away, slow or refuses."""

PAYLOAD_BYTES = 8 << 20
"""The message size that a broker must allow: that of the largest frame."""
_CLOSE_S = 2.0
_SETTINGS = {
    10023: "it has too little room: raise max_file_store in the jetstream block of its configuration",
    10026: "it admits no more consumers: raise max_consumers of the account, or leave it out",
    10027: "it admits no more streams: raise max_streams of the account, or leave it out",
    10039: "JetStream is off for the account there: set jetstream: enabled in it, under accounts",
    10113: "the account asks for a size of each stream: leave out max_bytes_required",
    10122: "the account admits too small streams: raise max_stream_bytes of the account, or leave it out",
    10047: "its JetStream store is too small: raise max_file_store in the jetstream block of its configuration",
}
"""Which of the broker's settings causes an error, by the error's number."""
_LIMITS = {
    "maximum connections exceeded": "it admits no more connections: raise max_connections in its configuration",
    "maximum account active connections exceeded": (
        "it admits no more connections: raise max_connections in the limits of the account"
    ),
    "maximum subscriptions exceeded": "it admits no more subscriptions: raise max_subscriptions in its configuration",
    "maximum control line exceeded": "it takes no subjects of this length: raise max_control_line in its configuration",
    "maximum payload": (f"it takes no messages of this size: set max_payload: {PAYLOAD_BYTES} in its configuration"),
}
"""The same for what the broker says before it closes the connection."""
NO_RIGHT = "permissions violation"


async def flush(client: Client, timeout_s: int = 10) -> None:
    """Return once the broker has handled everything this client subscribed to or published before the call.

    The library writes a flush's ping at once, ahead of subscriptions and messages that its own task has yet to write,
    so only a second ping is sure to come after them. Raises what the library raises; each ping may take `timeout_s`.
    """
    for _ in range(2):
        await client.flush(timeout_s)


async def disconnect(client: Client) -> None:
    """Close a connection in whatever state it is; one that was never opened cannot be closed."""
    if client.is_connected or client.is_connecting or client.is_reconnecting:
        # After a failed handshake the library may wait for the end of a transport that it no longer has.
        with contextlib.suppress(*BROKER_ERRORS):
            await asyncio.wait_for(client.close(), _CLOSE_S)


def reason(exc: Exception) -> str:
    """A description of an error of the library, with the broker's setting to change; some errors have no text."""
    text = str(exc) or type(exc).__name__
    if isinstance(exc, nats.js.errors.APIError) and exc.err_code in _SETTINGS:
        return _SETTINGS[exc.err_code]
    if limit := next((words for said, words in _LIMITS.items() if said in text.lower()), ""):
        return limit
    if NO_RIGHT in text.lower():
        return f"{text.removeprefix('nats: ')}: allow it in the permissions of this user there"
    return text


def names_setting(exc: Exception) -> bool:
    """Whether `reason` names a setting or a right: until somebody changes it, asking again does not help."""
    return reason(exc) != (str(exc) or type(exc).__name__)


def is_refusal(exc: Exception) -> bool:
    """Whether a broker has answered that it does not allow something."""
    text = str(exc).lower()
    return isinstance(exc, nats.js.errors.APIError) or any(said in text for said in (*_LIMITS, NO_RIGHT))
