"""The device's side of the broker: publish frames, await replies, watch keys, fetch objects.

link = Link(url, "pi-1", boot)
await link.connect()
answer = link.expect(window)                                  # the server's answer, once it comes
seconds = await link.deliver(message_id, window, frame)       # returns with the broker's acknowledgement
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import logging
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
import nats
import nats.errors
import nats.js.errors
import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg

from runtime_edge import subjects
from runtime_edge.credentials import Credentials, explain, servers
from runtime_edge.errors import AccessError, FormatError, FrameError, LinkError, SscError
from runtime_edge.tasks import cancel_all, next_within
from runtime_edge.wire import Reply, decode_reply

_LOG = logging.getLogger(__name__)
FRAME_OVERHEAD_BYTES = 160
"""Subject, headers and protocol text that go with a frame, for the bandwidth estimate."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 2.0
_REFUSED_PAUSE_S = 30.0
_CLOSE_S = 2.0
_PING_S = 2
_PIECE_PATIENCE_S = 60.0
_RECHECK_S = 300.0
"""How often a watched key is read again although no news of it came."""
_LONGEST_WATCH_PAUSE_S = 30.0
BROKER_ERRORS = (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError)
"""What the library raises when the broker is away, slow or refuses."""

OnChange = Callable[[str, bytes], Awaitable[None]]
LateReply = Callable[[Reply], None]


class _ObjectInfo(msgspec.Struct):
    """What the object store says of an object (NATS ADR-20), as far as it is needed to read it."""

    nuid: str
    size: int = 0
    chunks: int = 0
    digest: str = ""
    deleted: bool = False


class Link:
    """One connection to the broker that outlives the broker's restarts.

    Of JetStream it uses publishing and direct reads alone, never a consumer: a subject says all that is asked for, so
    the broker can hold a device to its own subjects.
    """

    def __init__(
        self, url: str, device: str, boot: str, late_reply: LateReply, credentials: Credentials | None = None
    ) -> None:
        """`url` may name several brokers of a cluster, with commas between them.

        Raises UsageError or FormatError when the credentials cannot be read.
        """
        self.url, self.device, self.boot = url, subjects.check_device(device), boot
        self._credentials = credentials or Credentials()
        self._credentials.options(url)
        self._late_reply = late_reply
        self._client = Client()
        self._inbox = ""
        self._lost = asyncio.Event()
        self._refusals: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._random = np.random.default_rng(zlib.crc32(device.encode()))
        # A fleet spreads over the brokers, and each device goes through all of them in an order of its own.
        self._servers = servers(url)
        self._random.shuffle(self._servers)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._watches: list[tuple[str, str, OnChange]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self.bad_replies = 0
        self.trouble = "not connected yet"
        """Why there is no connection; empty while there is one."""

    @property
    def connected(self) -> bool:
        """Whether frames can be published now, and their answers received."""
        return not self.trouble and self._client.is_connected

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Connect once; afterwards the connection mends itself for ever. Raises LinkError when no broker answers."""
        for more in range(len(self._servers) - 1, -1, -1):
            try:
                await self._connect(timeout_s)
                break
            except LinkError:
                if not more:
                    raise
        self._keeper = asyncio.create_task(self._keep())

    async def connect_at_last(self) -> None:
        """Until the first connection stands; a broker that is away at the start is no reason to stop."""
        await self._connect_patiently()
        self._keeper = asyncio.create_task(self._keep())

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
            stored = await self._last(subjects.bucket_stream(bucket), subjects.bucket_subject(bucket, key))
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: {bucket}/{key} cannot be read ({reason(exc)})") from None
        return None if stored is None else _value(stored)

    async def fetch(self, name: str, limit_bytes: int) -> bytes:
        """An object of the bundles store, at most `limit_bytes` long. Raises LinkError or FormatError.

        Read piece by piece, each asked for when the one before has come: as fast as the link is, and never faster.
        """
        try:
            return await self._fetch(name, limit_bytes)
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: object {name} cannot be fetched ({reason(exc)})") from None

    async def put_presence(self, data: bytes) -> None:
        """Store this device's report, best effort."""
        with contextlib.suppress(*BROKER_ERRORS):
            subject = subjects.bucket_subject(subjects.PRESENCE, self.device)
            await self._client.jetstream().publish(subject, data, stream=subjects.bucket_stream(subjects.PRESENCE))

    async def sound(self, filler: bytes) -> tuple[float, float]:
        """Two pings with `filler` between them: seconds the first took, and how much later the second was answered.

        Raises LinkError when an answer does not come in time.
        """
        started = time.monotonic()
        first = asyncio.create_task(self._pinged())
        try:
            await asyncio.sleep(0)  # the first ping is written
            if filler:
                await self._client.publish(subjects.filler(self.device), filler)
                # The library writes a ping at once, but other data from a task of its own: that must come first.
                for _ in range(100):
                    if not self._client.pending_data_size:
                        break
                    await asyncio.sleep(0)
            second = await self._pinged() if filler else await first
            answered = await first
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: a ping is not answered ({reason(exc)})") from None
        finally:
            first.cancel()
        return answered - started, second - answered

    async def _pinged(self) -> float:
        """When the broker has answered a ping."""
        await self._client.flush(_PING_S)
        return time.monotonic()

    async def put_learnt(self, data: bytes) -> None:
        """Store what this device has learnt on its table, best effort."""
        with contextlib.suppress(*BROKER_ERRORS):
            subject = subjects.bucket_subject(subjects.LEARNT, self.device)
            await self._client.jetstream().publish(subject, data, stream=subjects.bucket_stream(subjects.LEARNT))

    async def close(self) -> None:
        """Disconnect and stop watching."""
        await cancel_all([*self._watchers, *([self._keeper] if self._keeper else [])])
        await disconnect(self._client)

    async def _connect(self, timeout_s: float = 5.0) -> None:
        """One attempt at one broker, which the first error ends; the next attempt is at another one.

        Raises LinkError, and FormatError for unreadable credentials.
        """
        self._servers.append(server := self._servers.pop(0))
        self._client, self._lost = Client(), asyncio.Event()
        lost, connecting = self._lost, True

        async def on_error(exc: Exception) -> None:
            if "permissions violation" in str(exc).lower():
                self._refuse(str(exc))
            elif connecting:
                raise exc  # otherwise the library tries again until the time is up, and the reason is lost

        async def on_closed() -> None:
            lost.set()

        try:
            await asyncio.wait_for(
                self._client.connect(
                    server,
                    name=self.device,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    # Connecting again is done here: the library would never do so after a refusal.
                    allow_reconnect=False,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    connect_timeout=2,
                    pending_size=0,
                    inbox_prefix=subjects.inbox(self.device),
                    **self._credentials.options(self.url),
                ),
                timeout_s,
            )
            connecting = False
            self._refusals.clear()
            inbox = self._client.new_inbox()
            await self._client.subscribe(f"{inbox}.*", cb=self._on_reply)
            # The library may write the ping of the first before the subscription, and a refusal comes after it.
            await self._client.flush(2)
            await self._client.flush(2)
        except BROKER_ERRORS as exc:
            await disconnect(self._client)
            raise explain(self.url, self._credentials, exc) from None
        if self._refusals:
            await disconnect(self._client)
            raise AccessError(f"broker {self.url}: the credentials {self._credentials.nkey} are not {self.device}'s")
        self._inbox, self.trouble = inbox, ""
        self._restart_watchers()

    async def _connect_patiently(self) -> None:
        """Until connected; when all brokers were tried, with pauses that grow and that differ from device to device."""
        pause_s = _FIRST_PAUSE_S
        for attempt in itertools.count(1):
            try:
                return await self._connect()
            except SscError as exc:
                if str(exc) != self.trouble:
                    refused = not isinstance(exc, LinkError) or isinstance(exc, AccessError)
                    _LOG.log(logging.WARNING if refused else logging.INFO, "%s; frames wait in the spool", exc)
                self.trouble = str(exc)
                longest_s = _REFUSED_PAUSE_S if isinstance(exc, AccessError) else pause_s
            if attempt % len(self._servers) == 0:
                await asyncio.sleep(longest_s * self._random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _keep(self) -> None:
        """Connect again whenever the connection is lost."""
        while True:
            await self._lost.wait()
            self.trouble = f"broker {self.url}: the connection was lost"
            _LOG.info("broker is away")
            # A whole fleet has lost it at this moment.
            await asyncio.sleep(_FIRST_PAUSE_S * self._random.uniform())
            await self._connect_patiently()
            _LOG.info("broker is back")

    def _refuse(self, text: str) -> None:
        """Say once for each subject that the broker does not allow it."""
        if text not in self._refusals and len(self._refusals) < 16:
            self._refusals.add(text)
            _LOG.warning("broker %s: %s", self.url, text)

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
        """What followed the keys on the former connection has ended with it."""
        for task in self._watchers:
            task.cancel()
        self._watchers = [asyncio.create_task(self._watch(*watch)) for watch in self._watches]

    async def _watch(self, bucket: str, key: str, on_change: OnChange) -> None:
        """Follow one key; start over, with patience, when the broker or the bucket is not there yet."""
        pause_s = 1.0
        while True:
            try:
                async with contextlib.aclosing(self._news(bucket, key)) as news:
                    async for value in news:
                        await on_change(key, value)
                        pause_s = 1.0
            except (*BROKER_ERRORS, SscError) as exc:
                _LOG.info("watching %s/%s: %s", bucket, key, reason(exc))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_WATCH_PAUSE_S)

    async def _news(self, bucket: str, key: str) -> AsyncGenerator[bytes, None]:
        """The present value of a key and each later one, by revision; ends when the connection does."""
        client, repeated = self._client, asyncio.Queue[Msg]()
        stream, subject = subjects.bucket_stream(bucket), subjects.bucket_subject(bucket, key)
        subscription = await client.subscribe(subjects.news(bucket, key), cb=repeated.put)
        newest = 0
        try:
            stored = await self._last(stream, subject)
            while client.is_connected:
                if stored is not None and (stored.seq or 0) > newest:
                    newest = stored.seq or 0
                    if (value := _value(stored)) is not None:
                        yield value
                message = await next_within(repeated, _RECHECK_S * self._random.uniform(0.5, 1.0))
                stored = await self._last(stream, subject) if message is None else _repeated(message)
        finally:
            if client.is_connected:
                with contextlib.suppress(*BROKER_ERRORS):
                    await subscription.unsubscribe()

    async def _last(self, stream: str, subject: str) -> RawStreamMsg | None:
        """The last message a stream holds of a subject; None when it has none or is not there."""
        try:
            return await self._client.jetstream().get_last_msg(stream, subject, direct=True)
        except (nats.js.errors.NotFoundError, nats.errors.NoRespondersError):
            return None

    async def _fetch(self, name: str, limit_bytes: int) -> bytes:
        stream, prefix = f"OBJ_{subjects.BUNDLES}", f"$O.{subjects.BUNDLES}"
        stored = await self._last(stream, f"{prefix}.M.{base64.urlsafe_b64encode(name.encode()).decode()}")
        if stored is None:
            raise LinkError(f"broker {self.url}: object {name} cannot be fetched (not in the store)")
        try:
            info = msgspec.json.decode(stored.data or b"", type=_ObjectInfo)
        except msgspec.DecodeError as exc:
            raise FormatError(f"object {name}: damaged in the broker's store ({exc})") from None
        if info.deleted:
            raise LinkError(f"broker {self.url}: object {name} cannot be fetched (deleted)")
        if info.size > limit_bytes:
            raise FormatError(f"object {name}: {info.size} bytes, more than the {limit_bytes} expected")
        jetstream, data, sequence = self._client.jetstream(timeout=_PIECE_PATIENCE_S), bytearray(), 1
        while len(data) < info.size:
            piece = await jetstream.get_msg(stream, sequence, f"{prefix}.C.{info.nuid}", direct=True, next=True)
            data += piece.data or b""
            sequence = (piece.seq or 0) + 1
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        if len(data) != info.size or info.digest.removeprefix("SHA-256=") != digest:
            raise FormatError(f"object {name}: damaged in the broker's store (its digest does not match)")
        return bytes(data)


def _value(stored: RawStreamMsg) -> bytes | None:
    """What a key holds; None when the entry says that it was deleted."""
    return None if "KV-Operation" in (stored.headers or {}) else stored.data or None


def _repeated(message: Msg) -> RawStreamMsg:
    """A stored value that the broker has repeated to those who watch."""
    headers = message.headers or {}
    revision = headers.get("Nats-Sequence", "")
    return RawStreamMsg(seq=int(revision) if revision.isdecimal() else 0, data=message.data, headers=headers)


async def disconnect(client: Client) -> None:
    """Close a connection in whatever state it is; one that was never begun cannot be closed."""
    if client.is_connected or client.is_connecting or client.is_reconnecting:
        # A handshake that failed can leave the library waiting for the end of a transport it no longer has.
        with contextlib.suppress(*BROKER_ERRORS):
            await asyncio.wait_for(client.close(), _CLOSE_S)


def reason(exc: Exception) -> str:
    """What to say of an error of the library; some have no text."""
    return str(exc) or type(exc).__name__
