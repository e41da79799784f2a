"""The broker's library, with a short way for what a device does with every window.

The library hands what is published to a task that writes it, and what comes to a queue with a task behind it: turns of
the event loop that cost a small device more than the work itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

_LOG = logging.getLogger(__name__)

Headers = Mapping[str, str]
Take = Callable[[str, bytes, Headers], None]
"""Gets an answer's token, its data and its headers."""


class DirectClient(Client):
    """A connection that writes at once and hands the answers of one inbox over as they are read.

    Args:
        take: gets what comes below `inbox`. Must not block.
    """

    def __init__(self, take: Take) -> None:
        super().__init__()
        self.inbox = ""
        """Whose messages are taken; the subscription is the caller's."""
        self._take = take
        self.msg_class = self._arrived  # type: ignore[assignment]

    def write_message(self, subject: str, payload: bytes, reply: str = "", headers: Headers | None = None) -> None:
        """`publish`, but on its way when this returns: in a packet of its own unless the link is behind.

        It overtakes what the library has not written yet. Subjects and headers must be valid: nothing is checked.
        Raises what `publish` raises.
        """
        if not self.is_connected or self._transport is None:
            raise nats.errors.ConnectionClosedError
        if len(payload) > self.max_payload:
            raise nats.errors.MaxPayloadError
        if headers is None:
            start, head = f"PUB {subject} {reply} {len(payload)}\r\n", ""
        else:
            head = "".join(["NATS/1.0\r\n", *[f"{name}: {value}\r\n" for name, value in headers.items()], "\r\n"])
            start = f"HPUB {subject} {reply} {len(head)} {len(head) + len(payload)}\r\n"
        self._transport.write(b"".join(((start + head).encode(), payload, b"\r\n")))

    def _arrived(self, **fields: Any) -> Msg | None:
        """In the place of the class of messages: what is taken here is none for the library."""
        subject, inbox = fields["subject"], self.inbox
        if not inbox or not subject.startswith(inbox):
            return Msg(**fields)
        try:
            self._take(subject[len(inbox) + 1 :], fields["data"], fields["headers"] or {})
        except Exception:
            _LOG.exception("an answer cannot be handled")  # the library would stop reading
        return None
