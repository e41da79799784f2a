"""The NATS client with a shortcut for what a device does for every window.

nats-py hands a published message to a task that writes it, and passes a received one through a stream, a parser, a
queue and another task. On a small device these turns of the event loop cost more than the work itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

import nats.errors

from runtime_edge.base.broker_transport import AnyAddressClient
from runtime_edge.base.traffic import tcp_info
from runtime_edge.base.traffic.tcp_info import Passed
from runtime_edge.formats.wire import MAX_FRAME_BYTES

_LOG = logging.getLogger(__name__)
_READ_BYTES = 64 << 10
_MAX_BYTES = MAX_FRAME_BYTES + (64 << 10)
"""The most bytes of one operation: a broker that announces more than any of ours would allow is disconnected."""

Headers = Mapping[str, str]
OnMessage = Callable[[str, bytes, str], None]
"""Called with an answer's token, its data and its status (`503`: nobody listens), which most answers lack."""


class DirectClient(AnyAddressClient):
    """A connection that writes at once and hands over the answers of one inbox as they are read.

    Args:
        on_message: called with each message below `inbox`; must not block.
        inbox: whose messages are taken [default: a new one for each connection]; the caller subscribes to it.
    """

    def __init__(self, on_message: OnMessage, inbox: str = "") -> None:
        super().__init__()
        self._on_message = on_message
        self._socket: asyncio.Transport | None = None
        self._connection: Any = None
        """The transport's socket, kept because TLS releases it before it reports that the connection has ended."""
        self._sorter: InboxSorter | None = None
        self._own_bytes, self._passed = 0, Passed(0, 0)
        self.by_kernel = False
        """Whether the kernel counted what `passed` returns."""
        self.inbox = self._fixed_inbox = inbox

    async def connect(self, *arguments: Any, **options: Any) -> None:
        """See the library."""
        await super().connect(*arguments, **options)
        self._socket = self._transport._io_writer.transport  # type: ignore[union-attr]
        self.inbox = self._fixed_inbox or self.new_inbox()
        self._connection = self._socket.get_extra_info("socket")
        # Nothing is subscribed to yet, so no message can have been received in part.
        behind = cast(asyncio.Protocol, self._socket.get_protocol())
        self._sorter = InboxSorter(behind, self.inbox, self._on_message, self._acknowledge_later, self.passed)
        self._socket.set_protocol(self._sorter)

    def passed(self) -> Passed:
        """What this connection has sent and received: by the kernel's count, or else its own, without headers."""
        counted = None if self._connection is None else tcp_info.passed(self._connection)
        if counted is not None:
            self._passed, self.by_kernel = counted, True
        elif self._sorter is not None and not self.by_kernel:
            self._passed = Passed(self.written_bytes + self._own_bytes, self._sorter.read_bytes)
        return self._passed

    def _acknowledge_later(self) -> None:
        """Let TCP acknowledge two messages at once: the broker's and the server's answers come close together.

        The kernel forgets this setting, so it is set again at every read. Linux only.
        """
        if self._connection is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    def write_message(self, subject: str, payload: bytes, reply: str = "", headers: Headers | None = None) -> None:
        """Like `publish`, but sent by the time it returns: in a packet of its own unless the link is behind.

        It overtakes what the library has not written yet. Subjects and headers must be valid: nothing is checked.
        Raises what `publish` raises.
        """
        if not self.is_connected or self._socket is None:
            raise nats.errors.ConnectionClosedError
        if len(payload) > self.max_payload:
            raise nats.errors.MaxPayloadError
        subjects = f"{subject} {reply}" if reply else subject
        if headers is None:
            start, head = f"PUB {subjects} {len(payload)}\r\n", ""
        else:
            head = "NATS/1.0\r\n"
            for name, value in headers.items():
                head += f"{name}: {value}\r\n"
            head += "\r\n"
            start = f"HPUB {subjects} {len(head)} {len(head) + len(payload)}\r\n"
        message = b"".join(((start + head).encode(), payload, b"\r\n"))
        self._own_bytes += len(message)
        self._socket.write(message)


class InboxSorter(asyncio.BufferedProtocol):
    """Separates one inbox's messages from the broker's byte stream; the library gets the rest.

    It reads into a buffer of its own: for other protocols asyncio allocates 256 KiB at every read, whose pages come
    from the system each time.
    """

    def __init__(
        self,
        behind: asyncio.Protocol,
        inbox: str,
        on_message: OnMessage,
        on_read: Callable[[], None] = lambda: None,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_read` is called after each read, `on_lost` when the connection ends and its socket still exists."""
        self._behind, self._on_message, self._on_read, self._on_lost = behind, on_message, on_read, on_lost
        self.read_bytes = 0
        self._prefix = f"{inbox}.".encode()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._begun = b""

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio. Raises ValueError, which ends the connection, for anything that no broker of ours sends."""
        self.read_bytes += nbytes
        data, start, stop = self._begun + self._buffer[:nbytes], 0, 0
        others = []
        while (end := data.find(b"\r\n", start) + 2) > 1:
            words = data[start:end].split()
            is_message = bool(words) and words[0] in (b"MSG", b"HMSG")
            stop = end + int(words[-1]) + 2 if is_message else end
            if stop < end:
                raise ValueError("a broker announces a negative size")
            if stop > len(data):
                break
            if is_message and words[1].startswith(self._prefix):
                head = int(words[-2]) if words[0] == b"HMSG" else 0
                self._message(words[1], data[end : end + head], data[end + head : stop - 2])
            else:
                others.append(data[start:stop])
            start = stop
        self._begun = data[start:]
        if max(len(self._begun), stop - start) > _MAX_BYTES:
            raise ValueError(f"a broker announces more than {_MAX_BYTES} bytes at once")
        if others:
            self._behind.data_received(b"".join(others))
        self._on_read()

    def _message(self, subject: bytes, head: bytes, payload: bytes) -> None:
        try:
            status = b"".join(head.partition(b"\r\n")[0].split()[1:2]).decode() if head else ""
            self._on_message(subject[len(self._prefix) :].decode(), payload, status)
        except Exception:
            _LOG.exception("an answer cannot be handled")  # the connection is still usable

    def eof_received(self) -> bool | None:
        """See asyncio."""
        return self._behind.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        try:
            self._on_lost()
        finally:
            self._behind.connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio."""
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._behind.resume_writing()
