"""A broker in memory, for tests of code that talks to one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from runtime_edge.base.traffic.traffic_log import Traffic
from runtime_edge.errors import FormatError, FrameError, LinkError
from runtime_edge.formats.wire import Reply, decode_frame, encode_reply
from runtime_edge.transport.pending import PendingAnswers
from runtime_edge.transport.protocol import LateReply, OnAnswer, OnChange, OnRequest, OnStored

_ROUND_TRIP_S = 0.001
_STORED = b'{"stream":"ACTIVATIONS"}'


class InMemoryTransport:
    """Keeps what a device sends, and serves what a test has put there (`runtime_edge.transport.protocol`).

    Args:
        answer: the server's reply to window `index` with this frame; None: no reply.
        device: the device under whose name `put` stores values.
    """

    def __init__(
        self,
        answer: Callable[[int, bytes], Reply | None] = lambda index, frame: None,
        device: str = "pi-1",
    ) -> None:
        self.url, self.trouble, self.held, self.withheld = "memory:", "", "", 0
        self.frames: dict[str, bytes] = {}
        """Stored frames by message id."""
        self.sent = 0
        """Frames that arrived, including repeated ones."""
        self.acknowledged = 0
        """Frames for which the device asked for the broker's acknowledgement and got it."""
        self.filler_bytes = 0
        self.published: list[tuple[str, bytes]] = []
        self.values: dict[tuple[str, str], bytes] = {}
        """Values by bucket and key."""
        self.objects: dict[str, bytes] = {}
        self.stores = True
        """Whether frames are stored and acknowledged; otherwise they are lost."""
        self.up = self.down = self.updates = 0
        """Bytes sent and received, without any headers."""
        self._answer, self._device = answer, device
        self._pending = PendingAnswers()
        self._watches: list[tuple[str, str, OnChange]] = []
        self.requests: dict[str, OnRequest] = {}
        """What is called with the requests on a subject."""

    @property
    def connected(self) -> bool:
        """True until `disconnect`, and again after `reconnect`; False while the link is held."""
        return not self.trouble and not self.held

    @property
    def since_fetch_s(self) -> float:
        """Always 0: nothing takes time here."""
        return math.inf

    @property
    def counted_by(self) -> str:
        """See the protocol."""
        return "memory"

    def traffic(self) -> Traffic:
        """See the protocol."""
        return Traffic(self.up, self.down, self.updates)

    def disconnect(self) -> None:
        """Lose the connection, and everything not acknowledged yet."""
        self.trouble = "disconnected"
        self._pending.connection_lost()

    def reconnect(self) -> None:
        """Connect again; watchers are told about the next change."""
        self.trouble = ""

    def reply(self, reply: Reply) -> None:
        """Deliver a reply of the server to the device."""
        data = encode_reply(reply)
        self.down += len(data)
        self._pending.receive("", data, "")

    async def change(self, bucket: str, key: str, value: bytes) -> None:
        """Set a value and return once all its watchers have taken it."""
        self.values[bucket, key] = value
        for watched_bucket, watched_key, on_change in self._watches:
            if (watched_bucket, watched_key) == (bucket, key):
                await on_change(key, value)

    def expect(self, window: int, deadline_s: float, on_answer: OnAnswer) -> None:
        """See the protocol."""
        self._pending.expect(window, deadline_s, on_answer)

    def on_late_reply(self, late_reply: LateReply) -> None:
        """See the protocol."""
        self._pending.on_late_reply = late_reply

    def send(
        self,
        message_id: str,
        window: int | None,
        frame: bytes,
        on_stored: OnStored,
        timeout_s: float = 10.0,
        embedding: bool = True,
        by_answer: bool = False,
    ) -> None:
        """See the protocol."""
        self._check_connected()
        self.sent += 1
        self.up += len(frame)
        token = self._pending.acknowledgement(timeout_s, on_stored, window, by_answer)
        if self.stores:
            self.frames[message_id] = frame
            asyncio.get_running_loop().call_soon(self._stored, "" if by_answer else token, window, frame)

    def ping(self, on_answer: Callable[[float], None]) -> None:
        """See the protocol."""
        self._check_connected()
        asyncio.get_running_loop().call_soon(on_answer, _ROUND_TRIP_S)

    async def bandwidth_probe(self, filler: bytes) -> tuple[float, float]:
        """See the protocol."""
        self._check_connected()
        self.filler_bytes += len(filler)
        self.up += len(filler)
        return _ROUND_TRIP_S, _ROUND_TRIP_S

    async def publish(self, subject: str, data: bytes) -> None:
        """See the protocol."""
        if self.held:
            self.withheld += 1
        elif self.connected:
            self.published.append((subject, data))
            self.up += len(data)

    def on_request(self, subject: str, on_request: OnRequest) -> None:
        """See the protocol."""
        self.requests[subject] = on_request

    async def put(self, bucket: str, data: bytes) -> None:
        """See the protocol."""
        if self.connected:
            self.values[bucket, self._device] = data
            self.up += len(data)

    async def watch(self, bucket: str, keys: list[str], on_change: OnChange) -> None:
        """See the protocol."""
        for key in keys:
            self._watches.append((bucket, key, on_change))
            if not self.trouble and (bucket, key) in self.values:
                await on_change(key, self.values[bucket, key])

    async def value(self, bucket: str, key: str) -> bytes | None:
        """See the protocol."""
        self._check_connected()
        return self.values.get((bucket, key))

    async def object_bytes(self, name: str) -> int | None:
        """See the protocol."""
        self._check_connected()
        return len(self.objects[name]) if name in self.objects else None

    async def fetch(self, name: str, limit_bytes: int) -> bytes:
        """See the protocol."""
        self._check_connected()
        if name not in self.objects:
            raise LinkError(f"object {name} cannot be fetched (not in the store)")
        if len(self.objects[name]) > limit_bytes:
            raise FormatError(f"object {name}: {len(self.objects[name])} bytes, more than the {limit_bytes} expected")
        self.down += len(self.objects[name])
        self.updates += len(self.objects[name])
        return self.objects[name]

    def _check_connected(self) -> None:
        if self.trouble:
            raise LinkError(f"broker {self.url}: {self.trouble}")

    def _stored(self, token: str, window: int | None, frame: bytes) -> None:
        if self.trouble:
            return
        if token:
            self.acknowledged += 1
            self._pending.receive(token, _STORED, "")
        for answered in () if window is None else _windows(window, frame):
            reply = self._answer(answered, frame)
            if reply is not None:
                self.reply(reply)


def _windows(first: int, frame: bytes) -> list[int]:
    """The indices of a frame's windows; anything that is not a frame, as some tests send, is one window."""
    try:
        return [header.window for header, _ in decode_frame(frame)]
    except FrameError:
        return [first]
