"""The library's client, hardened against what publishers put into subjects and headers.

A publisher can start a message's headers with a status line, as the broker does with its own messages. The library then
takes the message for the broker's: a watch skips it and waits for ever, and a fetch ends. A status that is not UTF-8
even stops the reading from the connection, so that no later message arrives.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from runtime_edge.base.broker_transport import AnyAddressClient

_BEGIN, _END = b"NATS/1.0\r\n", b"\r\n"
_BROKERS_OWN = (b"Status", b"Description")
"""The header names under which the library keeps the broker's status."""
_INBOX = b"_INBOX."
_STORED = b"Nats-Stream: "
"""The broker adds this header to messages that it delivers from a stream, but not to its own status messages."""


class GuardedClient(AnyAddressClient):
    """A client that accepts a status only from the broker itself."""

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        return header_lines(raw)

    @property
    def offers_jetstream(self) -> bool:
        """Whether the connected broker has JetStream."""
        return bool(self._server_info.get("jetstream"))

    @property
    def alone(self) -> bool:
        """Whether the connected broker is not part of a cluster."""
        return "cluster" not in self._server_info

    def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> Coroutine[Any, Any, None]:
        """Called by the library for every message."""
        if headers and not (subject.startswith(_INBOX) and _STORED not in headers):
            headers = without_status(headers)
        if not (subject.isascii() and reply.isascii()):
            subject, reply = _text(subject), _text(reply)
        return super()._process_msg(sid, subject, reply, data, headers)


def without_status(headers: bytes) -> bytes:
    """A block of headers without its status, which the library can always read."""
    if headers.startswith(_BEGIN) and b"Status" not in headers and b"Description" not in headers:
        return headers
    lines = headers.split(_END)[1:]
    kept = [line for line in lines if line.partition(b":")[0].strip() not in (b"", *_BROKERS_OWN)]
    return _BEGIN + b"".join(line + _END for line in kept) + _END


def header_lines(raw: bytes) -> dict[str, str]:
    """Parse a block of headers like the library, but in half the time: the library checks every character of a name."""
    found = {}
    for line in raw.split(_END):
        name, separator, value = line.partition(b":")
        if separator and name.isascii():
            key = name.strip().decode()
            if not key or key.split() == [key]:
                found[key] = value.strip().decode(errors="replace")
    return found


def _text(subject: bytes) -> bytes:
    """The subject as valid UTF-8; the broker accepts any bytes."""
    try:
        subject.decode()
    except UnicodeDecodeError:
        return subject.decode(errors="replace").encode()
    return subject
