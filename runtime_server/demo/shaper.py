"""A thin link between a device and the broker: a TCP relay with a rate, a delay and a schedule."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

_UP_CHUNK_BYTES, _DOWN_CHUNK_BYTES = 2048, 1 << 16
_QUEUE_CHUNKS = 32
_CLOSE_S = 1.0


@dataclass(frozen=True)
class Phase:
    """So many seconds at one uplink rate."""

    seconds: float
    uplink_mbps: float


class Shaper:
    """Relays connections to the broker; the uplink is paced to the phase of the schedule, both ways are delayed.

    Nothing is dropped: a full queue stops reading, and TCP passes that on to the device.
    """

    def __init__(self, broker_port: int, phases: Sequence[Phase], one_way_ms: float) -> None:
        self._broker_port, self._phases, self._delay_s = broker_port, list(phases), one_way_ms / 1e3
        self._began = time.monotonic()
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of the loopback interface; `port` says which."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def begin(self) -> None:
        """Start the schedule now."""
        self._began = time.monotonic()

    def uplink_mbps(self) -> float:
        """The rate of the present phase; the last phase stays."""
        elapsed = time.monotonic() - self._began
        for phase in self._phases:
            if elapsed < phase.seconds:
                return phase.uplink_mbps
            elapsed -= phase.seconds
        return self._phases[-1].uplink_mbps

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._server is not None:
            self._server.close()
        for relay in list(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        # One turn of the loop in which aborted connections are torn down.
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
            try:
                await self._relay_both(reader, writer, up_reader, up_writer)
            finally:
                await _close(up_writer)
        except OSError:
            # The broker is away: the device sees its connection close, as on a real link.
            return
        finally:
            await _close(writer)
            self._relays.discard(task)

    async def _relay_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        """Until one side closes."""
        ways = [
            asyncio.create_task(self._relay(reader, up_writer, paced=True)),
            asyncio.create_task(self._relay(up_reader, writer, paced=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, paced: bool) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE_CHUNKS)
        sender = asyncio.create_task(_send(queue, writer))
        free_at = time.monotonic()
        try:
            while chunk := await reader.read(_UP_CHUNK_BYTES if paced else _DOWN_CHUNK_BYTES):
                free_at = max(free_at, time.monotonic())
                if paced:
                    free_at += len(chunk) * 8 / (self.uplink_mbps() * 1e6)
                    await asyncio.sleep(max(0.0, free_at - time.monotonic()))
                await queue.put((free_at + self._delay_s, chunk))
            await queue.put((0.0, b""))
            await sender
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sender


async def _send(queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    """Write chunks when they are due, until the empty one that marks the end."""
    while True:
        due, chunk = await queue.get()
        if not chunk:
            return
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.write(chunk)
        await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close once what was written has left; at once when that takes too long or nobody waits any more."""
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), _CLOSE_S)
    except (OSError, asyncio.TimeoutError):
        writer.transport.abort()
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
