"""The broker's library, with a connection that tries all addresses of a name and closes TLS without a warning.

The library asks asyncio for one address after another within a single time limit, so an address that swallows packets
(a stale record, IPv6 without a route) uses it up, and the others are never tried. A broker that is full says so and
hangs up, but asyncio then discards what it said. Over TLS, when the broker ends a connection, the library asks to keep
the other half open, which TLS does not support: asyncio warned about that at every disconnect.
"""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import ParseResult

from nats.aio.client import Client, Srv
from nats.aio.transport import TcpTransport

_BUFFER_BYTES = 32 << 10
_NEXT_S = 0.25
"""How long to wait for an answer before trying the next address as well (RFC 8305), s."""


class AnyAddressClient(Client):
    """A client that connects to whichever address of a broker's name answers first."""

    @property
    def written_bytes(self) -> int:
        """Bytes that the library has written on this connection."""
        transport = self._transport
        return transport.written_bytes if isinstance(transport, _AnyAddressTransport) else 0

    async def _connect_to_server(self, s: Srv) -> None:
        """Called by the library for every attempt."""
        self._transport = _AnyAddressTransport()  # type: ignore[no-untyped-call]
        await self._transport.connect(s.uri, _BUFFER_BYTES, self.options["connect_timeout"])


class _AnyAddressTransport(TcpTransport):
    written_bytes = 0
    """Bytes that the library wrote, before encryption."""

    def write(self, payload: bytes) -> None:
        """See the library."""
        self.written_bytes += len(payload)
        super().write(payload)  # type: ignore[no-untyped-call]

    def writelines(self, payload: list[bytes]) -> None:
        """See the library."""
        self.written_bytes += sum(map(len, payload))
        super().writelines(payload)  # type: ignore[no-untyped-call]

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """See the library."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=buffer_size)
        assert uri.hostname is not None
        assert uri.port is not None  # the library has filled in the default
        opening = loop.create_connection(
            lambda: _PlainProtocol(reader), uri.hostname, uri.port, happy_eyeballs_delay=_NEXT_S
        )
        transport, protocol = await asyncio.wait_for(opening, connect_timeout)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """See the library."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = _EncryptedProtocol(reader)
        host = uri if isinstance(uri, str) else uri.hostname
        assert self._bare_io_writer is not None  # set by `connect`
        plain = self._bare_io_writer.transport
        encrypting = loop.start_tls(plain, protocol, ssl_context, server_hostname=host)
        transport = await asyncio.wait_for(encrypting, connect_timeout)
        assert transport is not None  # closed meanwhile
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def drain(self) -> None:
        """See the library. If the connection has ended, everything received on it is read before an error is raised."""
        try:
            await super().drain()  # type: ignore[no-untyped-call]
        except ConnectionError:
            if self.at_eof():  # type: ignore[no-untyped-call]
                raise


class _PlainProtocol(asyncio.StreamReaderProtocol):
    def connection_lost(self, exc: Exception | None) -> None:
        """Treat a reset like any other end: an error would hide what was received before."""
        super().connection_lost(None)


class _EncryptedProtocol(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        """Close the connection when the other end does: neither half stays open."""
        super().eof_received()
        return False
