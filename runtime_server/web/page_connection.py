"""A browser's connection, closed when it is idle, so that idle connections cannot keep others out."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class PageConnection(H11Protocol):
    """Refused beyond the configured number, and closed if no complete request arrives within the time limit.

    The same limit applies to a client that does not read the answer.
    """

    _looking: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called when the connection is made."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            transport.abort()
        else:
            self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection has ended."""
        self._look_never()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start waiting for the next request."""
        super().on_response_complete()
        self._look_later()

    def _look_later(self) -> None:
        self._look_never()
        self._looking = self.loop.call_later(self.timeout_keep_alive, self._look)

    def _look_never(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    def _look(self) -> None:
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        answering = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        if self._unsent != before if self._unsent else answering:
            self._look_later()
        else:
            self.transport.abort()
