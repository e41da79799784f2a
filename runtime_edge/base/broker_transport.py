"""The broker's library, with a connection that tries all addresses of a name.

The library asks asyncio for one address after the other within one time limit, so an address that swallows packets (a
stale record, IPv6 without a route) uses it up, and the others are never tried.
"""

from __future__ import annotations

import asyncio
from urllib.parse import ParseResult

from nats.aio.client import Client, Srv
from nats.aio.transport import TcpTransport

_BUFFER_BYTES = 32 << 10
_NEXT_S = 0.25
"""After so long without an answer the next address is tried as well (RFC 8305)."""


class AnyAddressClient(Client):
    """A client that connects to whichever address of a broker's name answers first."""

    async def _connect_to_server(self, s: Srv) -> None:
        """As the library calls it for every attempt."""
        self._transport = _AnyAddressTransport()  # type: ignore[no-untyped-call]
        await self._transport.connect(s.uri, _BUFFER_BYTES, self.options["connect_timeout"])


class _AnyAddressTransport(TcpTransport):
    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """See the library."""
        opening = asyncio.open_connection(uri.hostname, uri.port, limit=buffer_size, happy_eyeballs_delay=_NEXT_S)
        reader, writer = await asyncio.wait_for(opening, connect_timeout)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer
