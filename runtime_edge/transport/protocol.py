"""What a device needs from its link to the broker, however the link is implemented.

`runtime_edge.transport.connection` is the link to a real broker; `runtime_edge.transport.in_memory` holds what it is
sent, for tests. Everything is called in the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from runtime_edge.base.traffic.traffic_log import Traffic
from runtime_edge.errors import LinkError
from runtime_edge.formats.wire import Reply

FRAME_OVERHEAD_BYTES = 160
"""Subject, headers and protocol text that go with a frame, for the bandwidth estimate."""

OnAnswer = Callable[[Reply | None], None]
OnStored = Callable[[float | LinkError], None]
"""Gets the seconds until the broker has stored a message, or why it has not."""
OnChange = Callable[[str, bytes], Awaitable[None]]
"""Gets a key and its value."""
LateReply = Callable[[Reply], None]


class Transport(Protocol):
    """A link that may be down at any time, and comes back by itself."""

    held: str
    """Why nothing is sent although there may be a connection; empty while it is. Set by who paces (`budgets`)."""
    withheld: int
    """Events that were not published therefore."""

    @property
    def url(self) -> str:
        """Where the broker is."""

    @property
    def connected(self) -> bool:
        """Whether frames can be published now, and their answers received, and nothing is held. From any thread."""

    @property
    def trouble(self) -> str:
        """Why there is no connection; empty while there is one."""

    @property
    def since_fetch_s(self) -> float:
        """Seconds since something was last fetched; 0 while it is, infinite before the first time."""

    @property
    def counted_by(self) -> str:
        """What counts `traffic`, in words."""

    def traffic(self) -> Traffic:
        """What has passed the interface for this link so far, over reconnections."""

    def expect(self, window: int, deadline_s: float, on_answer: OnAnswer) -> None:
        """Call back with the answer to this window, or None when it has not come in time; call before `send`.

        An answer that comes later goes to whom `on_late_reply` names.
        """

    def on_late_reply(self, late_reply: LateReply) -> None:
        """Call back with replies that come after their deadline; before this call they are dropped."""

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
        """Publish one frame; call back with the seconds until the broker has stored it, or with why it has not.

        The server answers `window`, the frame's first, and those behind it; without `embedding` only where something is
        wrong, and not at all when `window` is None. With `by_answer` that answer is the acknowledgement: the broker is
        not asked for one, and the server's own time is not counted. Raises LinkError when it cannot be sent, and then
        does not call back; otherwise it may have arrived even so, and sending it again is harmless.
        """

    def ping(self, on_answer: Callable[[float], None]) -> None:
        """Measure an empty round trip to the broker; the callback gets the seconds it took. Raises LinkError."""

    async def bandwidth_probe(self, filler: bytes) -> tuple[float, float]:
        """Send two pings around `filler`; return the first one's seconds and the delay of the second behind it.

        Raises LinkError when an answer does not come in time.
        """

    async def publish(self, subject: str, data: bytes) -> None:
        """Publish an event, best effort."""

    async def put(self, bucket: str, data: bytes) -> None:
        """Store a value under this device's name, best effort."""

    async def watch(self, bucket: str, keys: list[str], on_change: OnChange) -> None:
        """Call back with the present and every later value of the keys, over reconnections too."""

    async def value(self, bucket: str, key: str) -> bytes | None:
        """The present value of a key, or None. Raises LinkError when the broker does not answer."""

    async def object_bytes(self, name: str) -> int | None:
        """How long an object of the bundles store is; None where there is none. Raises LinkError."""

    async def fetch(self, name: str, limit_bytes: int) -> bytes:
        """An object of the bundles store, at most `limit_bytes` long. Raises LinkError or FormatError."""
