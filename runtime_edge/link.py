"""The device's side of the broker: publish frames, await replies, watch keys, fetch objects.

link = Link(url, "pi-1", boot)
await link.connect()
delivered = await link.deliver(message_id, window, frame)     # the broker's acknowledgement
reply = await link.reply(window, deadline_s=1.0)              # the server's answer, or None
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from runtime_edge import subjects
from runtime_edge.errors import FormatError, FrameError, LinkError
from runtime_edge.wire import Reply, decode_reply

_LOG = logging.getLogger(__name__)
FRAME_OVERHEAD_BYTES = 160
"""Subject, headers and protocol text that go with a frame, for the bandwidth estimate."""

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
        self._watches: list[tuple[str, list[str], OnChange]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self.bad_replies = 0

    @property
    def connected(self) -> bool:
        """Whether frames can be published now."""
        return bool(self._client.is_connected)

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Connect once; afterwards the connection mends itself for ever. Raises LinkError."""
        self._client = Client()

        async def on_error(exc: Exception) -> None:
            _LOG.debug("broker: %s", exc)

        async def on_reconnect() -> None:
            _LOG.info("broker is back")
            self._start_watchers()

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
        except (OSError, asyncio.TimeoutError, nats.errors.Error) as exc:
            raise LinkError(
                f"broker {self.url}: cannot connect ({exc or type(exc).__name__}); is it running?"
            ) from None
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_reply)

    async def deliver(self, message_id: str, window: int, frame: bytes, timeout_s: float = 10.0) -> float:
        """Publish one frame and wait until the broker has stored it; returns the seconds it took.

        Raises LinkError; the frame may or may not have arrived then, and sending it again is harmless.
        """
        headers = {
            subjects.MESSAGE_ID_HEADER: message_id,
            subjects.REPLY_HEADER: f"{self._inbox}.{window}",
        }
        started = time.monotonic()
        try:
            await self._client.jetstream().publish(
                subjects.frames(self.device),
                frame,
                timeout=timeout_s,
                stream=subjects.STREAM,
                headers=headers,
            )
        except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError) as exc:
            raise LinkError(f"broker {self.url}: frame {message_id} not acknowledged ({exc or 'timeout'})") from None
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
        self._watches.append((bucket, keys, on_change))
        self._start_watchers()

    async def value(self, bucket: str, key: str) -> bytes | None:
        """The present value of a key, or None. Raises LinkError when the broker does not answer."""
        try:
            store = await self._client.jetstream().key_value(bucket)
            return (await store.get(key)).value
        except (nats.js.errors.KeyNotFoundError, nats.js.errors.BucketNotFoundError):
            return None
        except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError) as exc:
            raise LinkError(f"broker {self.url}: {bucket}/{key} cannot be read ({exc or 'timeout'})") from None

    async def fetch(self, name: str, limit_bytes: int) -> bytes:
        """An object of the bundles store, at most `limit_bytes` long. Raises LinkError or FormatError."""
        try:
            store = await self._client.jetstream().object_store(subjects.BUNDLES)
            info = await store.get_info(name)
            if (info.size or 0) > limit_bytes:
                raise FormatError(f"object {name}: {info.size} bytes, more than the {limit_bytes} expected")
            result = await store.get(name)
        except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError) as exc:
            raise LinkError(f"broker {self.url}: object {name} cannot be fetched ({exc or 'timeout'})") from None
        return bytes(result.data or b"")

    async def put_presence(self, data: bytes) -> None:
        """Store this device's report, best effort."""
        with contextlib.suppress(nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError):
            bucket = await self._client.jetstream().key_value(subjects.PRESENCE)
            await bucket.put(self.device, data)

    async def close(self) -> None:
        """Disconnect and stop watching."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
            await self._client.close()

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

    def _start_watchers(self) -> None:
        for task in self._watchers:
            task.cancel()
        self._watchers = [
            asyncio.get_running_loop().create_task(self._watch(bucket, key, on_change))
            for bucket, keys, on_change in self._watches
            for key in keys
        ]

    async def _watch(self, bucket: str, key: str, on_change: OnChange) -> None:
        """Follow one key; start over, with patience, when the broker or the bucket is not there yet."""
        while True:
            try:
                store = await self._client.jetstream().key_value(bucket)
                watcher = await store.watch(key)
                async for entry in watcher:
                    if entry is not None and entry.operation is None and entry.value:
                        await on_change(key, entry.value)
            except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError) as exc:
                _LOG.debug("watching %s/%s: %s", bucket, key, exc)
            await asyncio.sleep(1.0)
