"""A TCP relay that emulates a link: delay, jitter and outages both ways, and a rate if the kernel does not shape.

Nothing is dropped: what cannot be sent yet is held, and TCP slows the sender down.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

_CHUNK_BYTES = 64, 2048
_CHUNK_S = 0.002
"""Duration of one chunk on a paced link. It is short because the data of a chunk arrives all at once, as in a
packet.
"""
_QUEUE_CHUNKS = 32
_CLOSE_S = 1.0
MakeSocket = Callable[[], socket.socket]
Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True)
class LinkState:
    """The present state of a link."""

    one_way_ms: float = 0.0
    jitter_ms: float = 0.0
    """Each chunk is delayed by up to this much more or less; the order stays."""
    uplink_mbps: float | None = None
    """None: as fast as the network underneath."""
    downlink_mbps: float | None = None
    outage: bool = False
    """Nothing passes, but connections stay open."""


class Passage(NamedTuple):
    """One chunk that has passed a relay."""

    begins: float
    """By the relay's clock, s: the chunk was on the link from `begins` to `ends`."""
    ends: float
    way: str
    bytes: int


class Relay:
    """Relays connections to one address; `state` may be changed at any time.

    Args:
        upstream: host and port to which connections are relayed.
        listener: a bound socket to listen on; if not given, a free port of loopback.
        make_socket: makes the sockets that go upstream, so that they can be in another network namespace.
        seed: seed of the jitter.
        clock, sleep: the time in seconds, and a wait measured by it.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        listener: socket.socket | None = None,
        make_socket: MakeSocket = lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        seed: int = 0,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.port = 0
        self.passed = {"up": 0, "down": 0}
        """Bytes of data each way, without any protocol's headers."""
        self.passages: list[Passage] | None = None
        """Every passage, once a caller has put a list here."""
        self._upstream, self._listener, self._make_socket = upstream, listener, make_socket
        self._random = random.Random(seed)  # noqa: S311
        self._clock, self._sleep = clock, sleep
        self._state = LinkState()
        self._passable = asyncio.Event()
        self._passable.set()
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> LinkState:
        """The link's state as it was set."""
        return self._state

    @state.setter
    def state(self, state: LinkState) -> None:
        self._state = state
        if state.outage:
            self._passable.clear()
        else:
            self._passable.set()

    def now(self) -> LinkState:
        """The link's state at this moment."""
        return self._state

    async def start(self) -> None:
        """Start listening; `port` is the port."""
        if self._listener is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        else:
            self._server = await asyncio.start_server(self._accept, sock=self._listener)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._server is not None:
            self._server.close()
        for relay in list(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        # One turn of the event loop, in which aborted connections are torn down.
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        _send_at_once(writer)
        try:
            up_reader, up_writer = await self._connect()
            try:
                await self._relay_both(reader, writer, up_reader, up_writer)
            finally:
                await _close(up_writer)
        except (OSError, asyncio.CancelledError):
            # The broker is away, so the device sees its connection close, as on a real link; or `stop` was called.
            return
        finally:
            await _close(writer)
            self._relays.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        outgoing = self._make_socket()
        outgoing.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(outgoing, self._upstream)
            reader, writer = await asyncio.open_connection(sock=outgoing)
        except BaseException:
            outgoing.close()
            raise
        _send_at_once(writer)
        return reader, writer

    async def _relay_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        """Relay both ways until one side closes."""
        ways = [
            asyncio.create_task(self._relay(reader, up_writer, "up")),
            asyncio.create_task(self._relay(up_reader, writer, "down")),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE_CHUNKS)
        sender = asyncio.create_task(self._send(queue, writer))
        free_at = due = self._clock()
        try:
            while chunk := await reader.read(self._chunk_bytes(way)):
                free_at = max(free_at, self._clock())
                self.passed[way] += len(chunk)
                begins = free_at
                if (rate := self._mbps(way)) is not None:
                    free_at += len(chunk) * 8 / (rate * 1e6)
                    await self._sleep(max(0.0, free_at - self._clock()))
                if self.passages is not None:
                    self.passages.append(Passage(begins, free_at, way, len(chunk)))
                due = max(due, free_at + self._delay_s())
                await queue.put((due, chunk))
            await queue.put((0.0, b""))
            await sender
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sender

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        """Write chunks when they are due and the link lets them pass, until the empty chunk that marks the end."""
        while True:
            due, chunk = await queue.get()
            if not chunk:
                return
            await self._sleep(max(0.0, due - self._clock()))
            await self._passable.wait()
            writer.write(chunk)
            await writer.drain()

    def _mbps(self, way: str) -> float | None:
        rate: float | None = getattr(self.now(), f"{way}link_mbps")
        return rate

    def _chunk_bytes(self, way: str) -> int:
        least, most = _CHUNK_BYTES
        rate = self._mbps(way)
        return most if rate is None else min(max(int(_CHUNK_S * rate * 1e6 / 8), least), most)

    def _delay_s(self) -> float:
        now = self.now()
        jitter_ms = now.jitter_ms
        return max(0.0, now.one_way_ms + self._random.uniform(-jitter_ms, jitter_ms)) / 1e3


def _send_at_once(writer: asyncio.StreamWriter) -> None:
    """Switch off Nagle's algorithm, which would add a delay of its own."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close once everything written has been sent; immediately if that takes too long or nobody waits any more."""
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), _CLOSE_S)
    except (OSError, asyncio.TimeoutError):
        writer.transport.abort()
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
