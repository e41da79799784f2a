"""The device's connection to the broker: publish frames, await replies, watch keys, fetch objects.

connection = Connection(url, "pi-1")
await connection.connect()
connection.expect(window, 1.0, on_answer)                     # the server's reply
connection.send(message_id, window, frame, on_stored)         # the broker's acknowledgement
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import time
import zlib
from collections.abc import Callable, Coroutine

import nats.errors
import numpy as np
from nats.aio.msg import Msg

from runtime_edge.base.aio import cancel_all, within
from runtime_edge.base.broker_errors import BROKER_ERRORS, disconnect, flush, reason
from runtime_edge.base.text import without_password
from runtime_edge.base.traffic.budget import on_the_way
from runtime_edge.base.traffic.traffic_log import Traffic
from runtime_edge.errors import AccessError, FormatError, LinkError, SscError
from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Credentials, explain, named, servers
from runtime_edge.transport import direct_get
from runtime_edge.transport.fast_client import DirectClient
from runtime_edge.transport.pending import PendingAnswers
from runtime_edge.transport.protocol import LateReply, OnAnswer, OnChange, OnRequest, OnStored

_LOG = logging.getLogger(__name__)
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 2.0
REFUSED_PAUSE_S = 30.0
_PING_S = 2
_PING_EVERY_S = 30
"""Seconds between pings. An unacknowledged frame sends one at once; otherwise this is often enough."""
_LONGEST_WATCH_PAUSE_S = 30.0


class Connection:
    """A `Transport` to a broker that reconnects automatically when the broker restarts.

    It only publishes to JetStream and reads from it directly, and never creates a consumer. Each request is therefore
    fully described by its subject, and subject permissions are enough to confine a device to its own data.
    """

    def __init__(
        self,
        url: str,
        device: str,
        credentials: Credentials | None = None,
        recheck_s: float = direct_get.RECHECK_S,
        refused_pause_s: float = REFUSED_PAUSE_S,
    ) -> None:
        """`url` may name several brokers of a cluster, separated by commas.

        Watched keys are read again after at most `recheck_s`, in case news of them was lost. A broker that refuses the
        credentials is tried again after at most `refused_pause_s`.

        Raises UsageError or FormatError if the credentials cannot be read.
        """
        self.url, self.device = without_password(url), subjects.check_device(device)
        self._frames, self._filler = subjects.frames(device), subjects.filler(device)
        self._credentials = credentials or Credentials()
        self._address = url
        self._credentials.options(url)
        self._pending = PendingAnswers()
        self._client = DirectClient(self._pending.receive)
        self._recheck_s, self._refused_pause_s = recheck_s, refused_pause_s
        self._lost = asyncio.Event()
        self._refusals: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._random = np.random.default_rng(zlib.crc32(device.encode()))
        # Each device tries the brokers in its own random order, which spreads a fleet over them.
        self._servers = servers(url)
        self._random.shuffle(self._servers)
        self._watches: list[Callable[[], Coroutine[None, None, None]]] = []
        """What to await on every connection."""
        self._watchers: list[asyncio.Task[None]] = []
        self._checking: asyncio.Task[None] | None = None
        self._pending.on_overdue = self._overdue
        self._fetches, self._fetched_at = 0, -math.inf
        self._before, self._updates = Traffic(), 0
        """Traffic of earlier connections, and of updates."""
        self.trouble = "not connected yet"
        """Why there is no connection; empty while there is one."""
        self.held, self.withheld = "", 0
        """See the protocol."""

    @property
    def bad_replies(self) -> int:
        """The number of answers that could not be read."""
        return self._pending.bad_replies

    @property
    def connected(self) -> bool:
        """Whether frames can be published and their answers received now, and nothing is held."""
        return not self.held and self._has_broker

    @property
    def _has_broker(self) -> bool:
        return not self.trouble and self._client.is_connected

    @property
    def since_fetch_s(self) -> float:
        """Seconds since something was last fetched; 0 during a fetch, infinite before the first one."""
        return 0.0 if self._fetches else time.monotonic() - self._fetched_at

    @property
    def counted_by(self) -> str:
        """What counts `traffic`, in words."""
        by_kernel = "the kernel, with headers from Ethernet upwards"
        return by_kernel if self._client.by_kernel else "this program, without headers"

    def traffic(self) -> Traffic:
        """Traffic of this link on the interface so far, across reconnections."""
        return self._before.plus(Traffic(*self._client.passed()))._replace(updates=self._updates)

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Connect once; later losses are repaired in the background. Raises LinkError if no broker answers."""
        for more in range(len(self._servers) - 1, -1, -1):
            try:
                await self._connect(timeout_s)
                break
            except LinkError:
                if not more:
                    raise
        self._keeper = asyncio.create_task(self._keep())

    async def connect_with_retries(self) -> None:
        """Retry until the first connection succeeds: a broker that is down at the start is no reason to stop."""
        await self._connect_with_retries()
        self._keeper = asyncio.create_task(self._keep())

    def expect(self, window: int, deadline_s: float, on_answer: OnAnswer) -> None:
        """See the protocol; call it before `send`."""
        self._pending.expect(window, deadline_s, on_answer)

    def on_late_reply(self, late_reply: LateReply) -> None:
        """Call back with replies that come after their deadline; until this is called they are dropped."""
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
        """See the protocol: publish one frame, and call back once the broker has stored it."""
        token = "" if window is None else self._pending.name.rpartition(".")[2]
        headers = subjects.envelope(message_id, self.device, token, embedding)
        acknowledgement = self._pending.acknowledgement(timeout_s, on_stored, window, by_answer)
        reply = "" if by_answer else f"{self._pending.name}.{acknowledgement}"
        try:
            self._client.write_message(self._frames, frame, reply, headers)
        except BROKER_ERRORS as exc:
            self._pending.not_sent(acknowledgement)
            raise LinkError(f"broker {self.url}: frame {message_id} not sent ({reason(exc)})") from None

    async def publish(self, subject: str, data: bytes) -> None:
        """Publish an event, best effort."""
        if self.held:
            self.withheld += 1
            return
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(subject, data)

    async def watch(self, bucket: str, keys: list[str], on_change: OnChange) -> None:
        """Call back with the present and every later value of the keys, across reconnections."""
        for key in keys:
            self._watch_from_now_on(functools.partial(self._watch, bucket, key, on_change))

    async def value(self, bucket: str, key: str) -> bytes | None:
        """The present value of a key, or None. Raises LinkError if the broker does not answer."""
        try:
            found = await direct_get.value(self._client, bucket, key)
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: {bucket}/{key} cannot be read ({reason(exc)})") from None
        if bucket != subjects.PRESENCE:
            self._count_update(len(found or b""))
        return found

    async def object_bytes(self, name: str) -> int | None:
        """The size in bytes of an object in the bundles store; None if there is none. Raises LinkError."""
        try:
            info = await direct_get.object_info(self._client, name)
        except (*BROKER_ERRORS, FormatError) as exc:
            raise LinkError(f"broker {self.url}: object {name} cannot be found ({reason(exc)})") from None
        self._count_update(0)
        return None if info is None or info.deleted else info.size

    async def fetch(self, name: str, limit_bytes: int) -> bytes:
        """An object from the bundles store, at most `limit_bytes` long. Raises LinkError or FormatError."""
        self._fetches += 1
        try:
            return await direct_get.fetch_object(self._client, name, limit_bytes, self._count_update)
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: object {name} cannot be fetched ({reason(exc)})") from None
        finally:
            self._fetches -= 1
            self._fetched_at = time.monotonic()

    def on_request(self, subject: str, on_request: OnRequest) -> None:
        """Call back with what arrives on a subject of this device, across reconnections."""
        self._watch_from_now_on(functools.partial(self._listen, subject, on_request))

    async def put(self, bucket: str, data: bytes) -> None:
        """Store a value under this device's name, best effort: the broker is not asked to acknowledge it."""
        with contextlib.suppress(*BROKER_ERRORS):
            await self._client.publish(subjects.bucket_subject(bucket, self.device), data)

    def ping(self, on_answer: Callable[[float], None]) -> None:
        """Measure an empty round trip to the broker; the callback gets the seconds it took.

        The message goes to a subject without subscribers, so the broker answers with a 503 at once. Raises LinkError.
        """
        try:
            self._client.write_message(self._filler, b"", self._pending.round_trip(on_answer))
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: a ping cannot be sent ({reason(exc)})") from None

    async def bandwidth_probe(self, filler: bytes) -> tuple[float, float]:
        """Send two pings around `filler`; returns the first one's seconds and by how much the second came later.

        Raises LinkError if an answer does not come in time.
        """
        started = time.monotonic()
        first = asyncio.create_task(self._pinged())
        try:
            await asyncio.sleep(0)  # the first ping is written: the library does so at once
            self._client.write_message(self._filler, filler)
            second = await self._pinged()
            answered = await first
        except BROKER_ERRORS as exc:
            raise LinkError(f"broker {self.url}: a ping is not answered ({reason(exc)})") from None
        finally:
            first.cancel()
        return answered - started, second - answered

    async def _pinged(self) -> float:
        """The time at which the broker answered a ping."""
        await self._client.flush(_PING_S)
        return time.monotonic()

    async def close(self) -> None:
        """Disconnect and stop watching."""
        await cancel_all([*self._watchers, *filter(None, (self._keeper, self._checking))])
        await disconnect(self._client)

    async def _connect(self, timeout_s: float = 5.0) -> None:
        """Try one broker and stop at the first error; the next attempt uses the next broker.

        Raises LinkError, and FormatError for unreadable credentials.
        """
        self._servers.append(server := self._servers.pop(0))
        inbox = f"{subjects.inbox(self.device)}.{subjects.new_connection()}"
        self._before = self.traffic()
        self._client, self._lost = DirectClient(self._pending.receive, inbox), asyncio.Event()
        lost, connecting = self._lost, True

        async def on_error(exc: Exception) -> None:
            if "permissions violation" in str(exc).lower():
                self._refuse(str(exc))
            elif connecting:
                raise exc  # otherwise the library retries until the time is up, and the reason is lost

        async def on_closed() -> None:
            lost.set()
            self._pending.connection_lost()

        try:
            await within(
                self._client.connect(
                    server,
                    name=self.device,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    # Reconnecting is done here: the library would never do so after a refusal.
                    allow_reconnect=False,
                    ping_interval=_PING_EVERY_S,
                    max_outstanding_pings=2,
                    connect_timeout=2,
                    pending_size=0,
                    inbox_prefix=subjects.inbox(self.device),
                    **self._credentials.options(self._address),
                ),
                timeout_s,
            )
            connecting = False
            self._refusals.clear()
            await self._client.subscribe(f"{self._client.inbox}.*")
            await flush(self._client, 2)  # a refused subscription has been reported by then
        except BROKER_ERRORS as exc:
            await disconnect(self._client)
            raise explain(self.url, self._credentials, exc) from None
        if self._refusals:
            await disconnect(self._client)
            given = "" if self._credentials.nkey is None else f" {named(self._credentials.nkey)}"
            raise AccessError(f"broker {self.url}: the credentials{given} are not {self.device}'s")
        self._pending.name, self.trouble = self._client.inbox, ""
        self._restart_watchers()

    def _count_update(self, count: int) -> None:
        """Count a received message of an update."""
        self._updates += on_the_way(count)

    def _overdue(self) -> None:
        """Check the connection after the broker did not acknowledge a frame in time: without any answer it is lost."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check(self._client))

    async def _check(self, client: DirectClient) -> None:
        try:
            await client.flush(_PING_S)
        except BROKER_ERRORS:
            await disconnect(client)

    async def _connect_with_retries(self) -> None:
        """Retry until connected. After each round over all brokers, wait with exponential backoff and jitter."""
        pause_s, said = FIRST_PAUSE_S, set[str]()
        for attempt in itertools.count(1):
            try:
                return await self._connect()
            except SscError as exc:
                if str(exc) not in said:  # several brokers may each give a different reason
                    said.add(str(exc))
                    _LOG.warning("%s; frames wait in the spool", exc)
                self.trouble = str(exc)
                longest_s = self._refused_pause_s if isinstance(exc, AccessError) else pause_s
            if attempt % len(self._servers) == 0:
                await asyncio.sleep(longest_s * self._random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _keep(self) -> None:
        """Reconnect whenever the connection is lost."""
        while True:
            await self._lost.wait()
            self.trouble = f"broker {self.url}: the connection was lost"
            _LOG.info("broker is away")
            # A whole fleet may have lost it at the same moment.
            await asyncio.sleep(FIRST_PAUSE_S * self._random.uniform())
            await self._connect_with_retries()
            _LOG.info("broker is back")

    def _refuse(self, text: str) -> None:
        """Log a permission error once for each subject."""
        if text not in self._refusals and len(self._refusals) < 16:
            self._refusals.add(text)
            _LOG.warning("broker %s: %s", self.url, text)

    def _watch_from_now_on(self, watch: Callable[[], Coroutine[None, None, None]]) -> None:
        self._watches.append(watch)
        self._watchers.append(asyncio.create_task(watch()))

    def _restart_watchers(self) -> None:
        """Watch all keys and await requests again on the new connection; the old watches ended with the old one."""
        for task in self._watchers:
            task.cancel()
        self._watchers = [asyncio.create_task(watch()) for watch in self._watches]

    async def _listen(self, subject: str, on_request: OnRequest) -> None:
        """Subscribe on the present connection; with the next one this is called again."""

        async def on_message(message: Msg) -> None:
            await on_request(message.data)

        if self._has_broker:
            with contextlib.suppress(*BROKER_ERRORS):
                await self._client.subscribe(subject, cb=on_message)

    async def _watch(self, bucket: str, key: str, on_change: OnChange) -> None:
        """Follow one key; if the broker or the bucket is missing, retry with exponential backoff."""
        pause_s = 1.0
        while True:
            try:
                if not self._has_broker:  # otherwise the library would begin a subscription that nothing ends
                    raise nats.errors.ConnectionClosedError
                values = direct_get.news(self._client, bucket, key, self._random, self._recheck_s)
                async with contextlib.aclosing(values) as news:
                    async for value in news:
                        self._count_update(len(value))
                        await on_change(key, value)
                        pause_s = 1.0
            except (*BROKER_ERRORS, SscError) as exc:
                _LOG.info("watching %s/%s: %s", bucket, key, reason(exc))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_WATCH_PAUSE_S)
