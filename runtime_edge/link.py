"""The device's side of the broker: publish frames, await replies, watch keys, fetch objects.

link = Link(url, "pi-1", boot)
await link.connect()
answer = link.expect(window)                                  # the server's answer, once it comes
seconds = await link.deliver(message_id, window, frame)       # returns with the broker's acknowledgement
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from runtime_edge import subjects
from runtime_edge.errors import FormatError, FrameError, LinkError, SscError
from runtime_edge.tasks import cancel_all
from runtime_edge.wire import Reply, decode_reply

_LOG = logging.getLogger(__name__)
FRAME_OVERHEAD_BYTES = 160
"""Subject, headers and protocol text that go with a frame, for the bandwidth estimate."""

_RECONNECT_S = 1.0
_FETCH_PATIENCE_S = 30.0
_SLOWEST_BYTES_PER_S = 4000
_LONGEST_PAUSE_S = 30.0
BROKER_ERRORS = (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError)
"""What the library raises when the broker is away, slow or refuses."""
_DAMAGED = (
    nats.js.errors.BadObjectMetaError,
    nats.js.errors.DigestMismatchError,
    ValueError,
    TypeError,
    AttributeError,
)

OnChange = Callable[[str, bytes], Awaitable[None]]
LateReply = Callable[[Reply], None]


class Link:
    """One connection to the broker that outlives the broker's restarts."""

    def __init__(self, url: str, device: str, boot: str, late_reply: LateReply) -> None:
        self.url, self.device, self.boot = url, subjects.check_device(device), boot
        self._late_reply = late_reply
        self._client = Client()
        self._inbox = ""
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._watches: list[tuple[str, str, OnChange]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self.bad_replies = 0

    @property
    def connected(self) -> bool:
        """Whether frames can be published now, and their answers received."""
        return bool(self._inbox and self._client.is_connected)

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Connect once; afterwards the connection mends itself for ever. Raises LinkError."""
        self._client = Client()

        async def on_error(exc: Exception) -> None:
            _LOG.debug("broker: %s", exc)

        async def on_reconnect() -> None:
            _LOG.info("broker is back")
            self._restart_watchers()

        async def on_disconnect() -> None:
            _LOG.info("broker is away")

        try:
            await asyncio.wait_for(
                self._client.connect(
                    self.url,
                    name=self.device,
                    error_cb=on_error,
                    reconnected_cb=on_reconnect,
                    disconnected_cb=on_disconnect,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    connect_timeout=2,
                    allow_reconnect=True,
                    pending_size=0,
                ),
                timeout_s,
            )
        except BROKER_ERRORS as exc:
            await disconnect(self._client)
            raise LinkError(f"broker {self.url}: cannot connect ({reason(exc)}); is it running?") from None
        inbox = self._client.new_inbox()
        await self._client.subscribe(f"{inbox}.*", cb=self._on_reply)
        self._inbox = inbox
        self._restart_watchers()

    async def connect_at_last(self) -> None:
        """Until the first connection stands; a broker that is away at the start is no reason to stop."""
        while True:
            try:
                await self.connect()
                return
            except LinkError as exc:
                _LOG.info("%s", exc)
                await asyncio.sleep(_RECONNECT_S)

    async def deliver(self, message_id: str, window: int | None, frame: bytes, timeout_s: float = 10.0) -> float:
        """Publish one frame and wait until the broker has stored it; returns the seconds it took.

        The server answers under the number `window`, or not at all when that is None. Raises LinkError; the frame
        may or may not have arrived then, and sending it again is harmless.
        """
        headers = {subjects.MESSAGE_ID_HEADER: message_id}
        if window is not None:
            headers[subjects.REPLY_HEADER] = f"{self._inbox}.{window}"
        started = time.monotonic()
        try:
            await self._client.jetstream().publish(
                subjects.frames(self.device),
                frame,
                timeout=timeout_s,
                stream=subjects.STREAM,
                headers=headers,
            )
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: frame {message_id} not acknowledged ({reason(exc)})") from None
        return time.monotonic() - started

    def expect(self, window: int) -> asyncio.Future[Reply]:
        """Announce that the answer to this window is awaited; call before `deliver`."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[window] = future
        return future

    def forget(self, window: int) -> None:
        """Stop waiting: a later answer goes to the late-reply callback."""
        self._waiting.pop(window, None)

    async def publish(self, subject: str, data: bytes) -> None:
        """Publish an event, best effort."""
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(subject, data)

    async def watch(self, bucket: str, keys: list[str], on_change: OnChange) -> None:
        """Call back with the present and every later value of the keys, over reconnections too."""
        for key in keys:
            self._watches.append((bucket, key, on_change))
            self._watchers.append(asyncio.create_task(self._watch(bucket, key, on_change)))

    async def value(self, bucket: str, key: str) -> bytes | None:
        """The present value of a key, or None. Raises LinkError when the broker does not answer."""
        try:
            store = await self._client.jetstream().key_value(bucket)
            return (await store.get(key)).value
        except (nats.js.errors.KeyNotFoundError, nats.js.errors.BucketNotFoundError):
            return None
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: {bucket}/{key} cannot be read ({reason(exc)})") from None

    async def fetch(self, name: str, limit_bytes: int) -> bytes:
        """An object of the bundles store, at most `limit_bytes` long. Raises LinkError or FormatError."""
        try:
            store = await self._client.jetstream().object_store(subjects.BUNDLES)
            info = await store.get_info(name)
            if (info.size or 0) > limit_bytes:
                raise FormatError(f"object {name}: {info.size} bytes, more than the {limit_bytes} expected")
            # A piece that has gone from the store would be waited for for ever.
            patience_s = _FETCH_PATIENCE_S + (info.size or 0) / _SLOWEST_BYTES_PER_S
            result = await asyncio.wait_for(store.get(name), patience_s)
        except _DAMAGED as exc:
            raise FormatError(f"object {name}: damaged in the broker's store ({type(exc).__name__})") from None
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: object {name} cannot be fetched ({reason(exc)})") from None
        return bytes(result.data or b"")

    async def put_presence(self, data: bytes) -> None:
        """Store this device's report, best effort."""
        with contextlib.suppress(*BROKER_ERRORS):
            bucket = await self._client.jetstream().key_value(subjects.PRESENCE)
            await bucket.put(self.device, data)

    async def close(self) -> None:
        """Disconnect and stop watching."""
        await cancel_all(self._watchers)
        await disconnect(self._client)

    async def _on_reply(self, message: Msg) -> None:
        try:
            reply = decode_reply(message.data)
        except FrameError as exc:
            self.bad_replies += 1
            _LOG.warning("reply dropped: %s", exc)
            return
        future = self._waiting.pop(reply.window, None)
        if future is not None and not future.done():
            future.set_result(reply)
        else:
            self._late_reply(reply)

    def _restart_watchers(self) -> None:
        """What followed the keys on the broker may have died with it."""
        for task in self._watchers:
            task.cancel()
        self._watchers = [asyncio.create_task(self._watch(*watch)) for watch in self._watches]

    async def _watch(self, bucket: str, key: str, on_change: OnChange) -> None:
        """Follow one key; start over, with patience, when the broker or the bucket is not there yet."""
        pause_s = 1.0
        while True:
            try:
                store = await self._client.jetstream().key_value(bucket)
                watcher = await store.watch(key)
                try:
                    async for entry in _news(watcher):
                        await on_change(key, entry)
                        pause_s = 1.0
                finally:
                    # Otherwise the library keeps its consumer alive, and this task may be a former connection's.
                    with contextlib.suppress(*BROKER_ERRORS):
                        await watcher.stop()  # type: ignore[no-untyped-call]
            except (*BROKER_ERRORS, SscError) as exc:
                _LOG.info("watching %s/%s: %s", bucket, key, reason(exc))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def _news(watcher: KeyValue.KeyWatcher) -> AsyncIterator[bytes]:
    """The present and later values; earlier ones, which the library repeats after a silence, are left out."""
    newest = 0
    async for entry in watcher:
        if entry is not None and (entry.revision or 0) > newest:
            newest = entry.revision or 0
            if entry.operation is None and entry.value:
                yield entry.value


async def disconnect(client: Client) -> None:
    """Close a connection in whatever state it is; one that was never begun cannot be closed."""
    if client.is_connected or client.is_connecting or client.is_reconnecting:
        with contextlib.suppress(*BROKER_ERRORS):
            await client.close()


def reason(exc: Exception) -> str:
    """What to say of an error of the library; some have no text."""
    return str(exc) or type(exc).__name__
