"""What a device needs from its link to the broker, however the link is implemented.

`runtime_edge.transport.connection` is the link to a real broker; `runtime_edge.transport.in_memory` keeps everything in
memory, for tests. All methods are called in the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from runtime_edge.base.traffic.traffic_log import Traffic
from runtime_edge.errors import LinkError
from runtime_edge.formats.wire import Reply

FRAME_OVERHEAD_BYTES = 160
"""Subject, headers and protocol text that accompany a frame, for the bandwidth estimate."""

OnAnswer = Callable[[Reply | None], None]
OnStored = Callable[[float | LinkError], None]
"""Called with the seconds until the broker has stored a message, or with the reason why it has not."""
OnChange = Callable[[str, bytes], Awaitable[None]]
"""Called with a key and its value."""
LateReply = Callable[[Reply], None]
OnRequest = Callable[[bytes], Awaitable[None]]
"""Called with the data of a request."""


class Transport(Protocol):
    """A link that may be down at any time, and recovers by itself."""

    held: str
    """Why nothing is sent although there may be a connection; empty while sending. Set by `budgets`."""
    withheld: int
    """Events that were not published for this reason."""

    @property
    def url(self) -> str:
        """The broker's address."""

    @property
    def connected(self) -> bool:
        """Whether frames can be published and their answers received now, and nothing is held. From any thread."""

    @property
    def trouble(self) -> str:
        """Why there is no connection; empty while there is one."""

    @property
    def since_fetch_s(self) -> float:
        """Seconds since something was last fetched; 0 during a fetch, infinite before the first one."""

    @property
    def counted_by(self) -> str:
        """What counts `traffic`, in words."""

    def traffic(self) -> Traffic:
        """Traffic of this link on the interface so far, across reconnections."""

    def expect(self, window: int, deadline_s: float, on_answer: OnAnswer) -> None:
        """Call back with the answer to this window, or None if it does not come in time; call before `send`.

        A later answer goes to the callback of `on_late_reply`.
        """

    def on_late_reply(self, late_reply: LateReply) -> None:
        """Call back with replies that come after their deadline; until this is called they are dropped."""

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

        The server answers `window`, the frame's first, and those after it; without `embedding` only if something is
        wrong, and not at all if `window` is None. With `by_answer` that answer is the acknowledgement: the broker is
        not asked for one, and the server's own time is not counted. Raises LinkError if it cannot be sent, and then
        does not call back. If the callback gets an error, it may still have arrived; sending it again is harmless.
        """

    def ping(self, on_answer: Callable[[float], None]) -> None:
        """Measure an empty round trip to the broker; the callback gets the seconds it took. Raises LinkError."""

    async def bandwidth_probe(self, filler: bytes) -> tuple[float, float]:
        """Send two pings around `filler`; returns the first one's seconds and by how much the second came later.

        Raises LinkError if an answer does not come in time.
        """

    async def publish(self, subject: str, data: bytes) -> None:
        """Publish an event, best effort."""

    def on_request(self, subject: str, on_request: OnRequest) -> None:
        """Call back with what arrives on a subject of this device, across reconnections."""

    async def put(self, bucket: str, data: bytes) -> None:
        """Store a value under this device's name, best effort."""

    async def watch(self, bucket: str, keys: list[str], on_change: OnChange) -> None:
        """Call back with the present and every later value of the keys, across reconnections."""

    async def value(self, bucket: str, key: str) -> bytes | None:
        """The present value of a key, or None. Raises LinkError if the broker does not answer."""

    async def object_bytes(self, name: str) -> int | None:
        """The size in bytes of an object in the bundles store; None if there is none. Raises LinkError."""

    async def fetch(self, name: str, limit_bytes: int) -> bytes:
        """An object from the bundles store, at most `limit_bytes` long. Raises LinkError or FormatError."""
