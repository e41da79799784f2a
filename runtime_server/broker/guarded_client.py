"""The library's client, made safe against what others put into subjects and headers.

A publisher may begin a message's headers with a status, as the broker does with its own. The library takes it for the
broker's: a watch skips the message and waits for ever, a fetch ends, and a status that is not UTF-8 ends the reading
from the connection, with every message that comes after.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from runtime_edge.base.broker_transport import AnyAddressClient

_BEGIN, _END = b"NATS/1.0\r\n", b"\r\n"
_BROKERS_OWN = (b"Status", b"Description")
"""Names under which the library keeps the broker's status."""
_INBOX = b"_INBOX."
_STORED = b"Nats-Stream: "
"""The broker writes this into what it hands out of a stream, and into no status of its own."""


class GuardedClient(AnyAddressClient):
    """A client to whom only the broker itself can tell a status."""

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        return header_lines(raw)

    @property
    def offers_jetstream(self) -> bool:
        """Whether the broker it is connected to has streams."""
        return bool(self._server_info.get("jetstream"))

    @property
    def alone(self) -> bool:
        """Whether that broker is not part of a cluster."""
        return "cluster" not in self._server_info

    def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> Coroutine[Any, Any, None]:
        """As the library calls it for every message."""
        if headers and not (subject.startswith(_INBOX) and _STORED not in headers):
            headers = without_status(headers)
        if not (subject.isascii() and reply.isascii()):
            subject, reply = _text(subject), _text(reply)
        return super()._process_msg(sid, subject, reply, data, headers)


def without_status(headers: bytes) -> bytes:
    """A block of headers without a status, which the library can read whatever it was before."""
    if headers.startswith(_BEGIN) and b"Status" not in headers and b"Description" not in headers:
        return headers
    lines = headers.split(_END)[1:]
    kept = [line for line in lines if line.partition(b":")[0].strip() not in (b"", *_BROKERS_OWN)]
    return _BEGIN + b"".join(line + _END for line in kept) + _END


def header_lines(raw: bytes) -> dict[str, str]:
    """A block of headers as the library reads it, in half the time: that one looks at each character of a name."""
    found = {}
    for line in raw.split(_END):
        name, separator, value = line.partition(b":")
        if separator and name.isascii():
            key = name.strip().decode()
            if not key or key.split() == [key]:
                found[key] = value.strip().decode(errors="replace")
    return found


def _text(subject: bytes) -> bytes:
    """A subject that is UTF-8; the broker takes any bytes."""
    try:
        subject.decode()
    except UnicodeDecodeError:
        return subject.decode(errors="replace").encode()
    return subject
