"""The server's side of the broker: its streams and buckets, and what it puts into them.

async with Hub("nats://127.0.0.1:4222") as hub:
    await hub.publish_bundle(bundle)                  # assets by digest, then the manifest
    await hub.put_table(table, key)                   # every device of the table's target
    await hub.release(bundle, "rpi4", key)            # devices fetch it now
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec
import nats
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import StreamConfig
from nats.js.client import JetStreamContext

from runtime_edge.base.aio import within
from runtime_edge.base.broker_errors import (
    BROKER_ERRORS,
    NO_RIGHT,
    disconnect,
    flush,
    is_refusal,
    names_setting,
    reason,
)
from runtime_edge.errors import AccessError, FormatError, LinkError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import MANIFEST, SIGNATURE, Bundle
from runtime_edge.formats.credentials import Address, explain, named, servers
from runtime_edge.formats.records import release as releases
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.records.release import Release, ReleasedBundle
from runtime_edge.formats.records.report import decode_report
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.formats.strict import decode
from runtime_edge.formats.wire import MAX_FRAME_BYTES
from runtime_server.broker.bucket_keys import bucket_keys
from runtime_server.broker.guarded_client import GuardedClient
from runtime_server.broker.record_writer import SignedRecordWriter
from runtime_server.broker.requirements import check_offer, check_store
from runtime_server.broker.streams import all_streams

_FLUSH_S = 2.0
_AGAIN_S = 0.5
_PING_S = 5
RECONNECT_S, CONNECT_TIMEOUT_S = 1, 2
"""Pause between two attempts to reconnect, and the timeout of one attempt."""
_ELECTION_S = 30.0
_NOT_YET = (nats.js.errors.ServiceUnavailableError, nats.js.errors.ServerError, asyncio.TimeoutError)
_EXISTS = 10058
"""The broker's error code for a stream that exists with another configuration."""
STATUS_SUBJECT = "srv.status"
NO_SERVER = "no server answers there; is `ssc server run` running?"
MAX_MESSAGE_BYTES = MAX_FRAME_BYTES
"""The largest message the broker accepts."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Request = Callable[Concatenate["Hub", _Arguments], Awaitable[_Result]]


def raises_link_error(request: _Request[_Arguments, _Result]) -> _Request[_Arguments, _Result]:
    """Turn the library's exceptions into LinkError."""

    @functools.wraps(request)
    async def wrapped(hub: Hub, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return await request(hub, *args, **kwargs)
        except BROKER_ERRORS as exc:
            raise hub.explained(exc) from None

    return wrapped


@dataclass
class LastReports:
    """What devices last reported about themselves."""

    read: dict[str, tuple[dict[str, Any], float]] = field(default_factory=dict)
    """By device, the report and how many seconds ago the broker stored it."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """By device, why its report cannot be read."""


class Hub:
    """A connection that may write what devices read. Every request raises LinkError if the broker refuses it."""

    def __init__(self, broker: str | Address, name: str = "ssc", records: SignedRecordWriter | None = None) -> None:
        address = Address(broker) if isinstance(broker, str) else broker
        self._records = records or SignedRecordWriter()
        self.url, self._address, self._credentials, self._name = str(address), address.url, address.credentials, name
        self.client = GuardedClient()

    async def __aenter__(self) -> Hub:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def stream(self) -> JetStreamContext:
        """The JetStream context of the connection."""
        return self.client.jetstream()

    async def connect(self, create: bool = False, replicas: int = 1) -> None:
        """Connect; with `create`, make sure that the streams and buckets exist, each on `replicas` brokers.

        Raises LinkError; UsageError or FormatError when the credentials cannot be read.
        """
        connecting = True

        async def on_error(exc: Exception) -> None:
            """Reconnecting is left to the library; failed requests raise where they are made."""
            if connecting and isinstance(explain(self.url, self._credentials, exc), AccessError):
                raise exc

        options = self._credentials.options(self._address)
        try:
            await within(
                self.client.connect(
                    servers(self._address),
                    name=self._name,
                    error_cb=on_error,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_S,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    ping_interval=_PING_S,
                    **options,
                ),
                5.0,
            )
            connecting = False
            if create:
                check_offer(self.client, self.url)
                await self.create(replicas)
        except LinkError:
            await disconnect(self.client)
            raise
        except BROKER_ERRORS as exc:
            await disconnect(self.client)
            # After a timeout, the reason is the error of the last attempt.
            late = isinstance(exc, asyncio.TimeoutError) and self.client.last_error is not None
            cause = self.client.last_error if late else exc
            raise self._advised(explain(self.url, self._credentials, cause or exc)) from None

    def explained(self, exc: Exception, of_none: str = "it does not answer in time") -> LinkError:
        """The error to raise for a request that failed with `exc`; `of_none` is its text if nothing answered."""
        cause = self._cause(exc)
        silent = isinstance(cause, asyncio.TimeoutError | nats.errors.NoRespondersError)
        return LinkError(f"broker {self.url}: {of_none if silent else self._in_words(cause)}")

    def _cause(self, exc: Exception) -> Exception:
        """The broker's refusal, if one preceded the silence or the disconnection; otherwise `exc`."""
        said = self.client.last_error
        mute = isinstance(exc, asyncio.TimeoutError | nats.errors.ConnectionClosedError)
        return said if mute and said is not None and is_refusal(said) else exc

    def _in_words(self, exc: Exception) -> str:
        words = reason(exc)
        if self._credentials.nkey is None or NO_RIGHT not in words:
            return words
        return f"{words}, or give --state of its server in place of {named(self._credentials.nkey)}"

    def _advised(self, exc: LinkError) -> LinkError:
        """The error, with advice for an operator, who needs the server's own key rather than a device's."""
        if isinstance(exc, AccessError) and self._credentials.nkey is None:
            return AccessError(f"broker {self.url}: asks for credentials; give --state of its server, or --credentials")
        return exc

    async def close(self) -> None:
        """Flush and disconnect."""
        with contextlib.suppress(*BROKER_ERRORS):
            if self.client.is_connected:
                await asyncio.wait_for(flush(self.client), _FLUSH_S)
        await disconnect(self.client)

    @raises_link_error
    async def subscribe(self, subject: str, on_message: Callable[[Msg], Awaitable[None]]) -> None:
        """Call `on_message` with every message published on a subject after this call returns, whoever publishes it."""
        await self.client.subscribe(subject, cb=on_message)
        await flush(self.client)

    @raises_link_error
    async def publish_bundle(self, bundle: Bundle) -> int:
        """Put a bundle's device files and manifest into the object store; returns how many bytes were new."""
        store = await self.stream.object_store(subjects.BUNDLES)
        sent = 0
        for variant in bundle.manifest.variants:
            for file, _ in bundle.manifest.device_files(variant).values():
                name = subjects.asset_object(file)
                if not await _has(store, name):
                    sent += await _put(store, name, await asyncio.to_thread(bundle.read, file))
        name = subjects.manifest_object(bundle.digest)
        if not await _has(store, name):
            sent += await _put(store, name, (bundle.path / MANIFEST).read_bytes())
        return sent

    @raises_link_error
    async def release(
        self,
        bundle: Bundle,
        target: str,
        key: minisign.SecretKey | None,
        rollback: bool = False,
        *,
        share: float = 1.0,
        stable: ReleasedBundle | None = None,
        oldest: int = 1,
    ) -> None:
        """Tell the devices of a target which bundle to run; call `publish_bundle` first.

        With a `share` below 1 the others run `stable`; `oldest` is the oldest generation that is still completed.
        """
        released = msgspec.structs.asdict(released_bundle(bundle, rollback))
        record = Release(**released, share=share, stable=stable, oldest=oldest)
        await self._records.put(self.stream, "release", target, releases.encode(record), key)

    @raises_link_error
    async def put_table(self, table: SplitterTable, key: minisign.SecretKey | None, device: str | None = None) -> None:
        """Give a splitter table to every device of its target, or to one device."""
        await self._records.put(self.stream, "table", subjects.table_key(table.target, device), table.to_json(), key)

    @raises_link_error
    async def table(self, target: str, device: str | None = None) -> bytes | None:
        """The record of the table given to every device of a target, or to one device; None if there is none."""
        bucket = await self.stream.key_value(subjects.TABLES)
        try:
            return (await bucket.get(subjects.table_key(target, device))).value
        except nats.js.errors.KeyNotFoundError:
            return None

    @raises_link_error
    async def put_head(self, head: Head, key: minisign.SecretKey | None, target: str, device: str | None) -> None:
        """Give a head to every device of a target, or to one device."""
        await self._records.put(self.stream, "head", subjects.table_key(target, device), head.to_json(), key)

    @raises_link_error
    async def put_adaptation(
        self, adaptation: Adaptation, key: minisign.SecretKey | None, target: str, device: str | None
    ) -> int:
        """Give an adaptation to every device of a target, or to one device; returns the bytes of its record."""
        name, body = subjects.table_key(target, device), adaptation.to_json()
        return await self._records.put(self.stream, "adaptation", name, body, key)

    @raises_link_error
    async def upgrade_records(self, key: minisign.SecretKey) -> None:
        """Number the tables and heads that an earlier version signed with this key."""
        await self._records.upgrade(self.stream, key)

    @raises_link_error
    async def put_signing_key(self, key: minisign.PublicKey) -> None:
        """Publish the key that devices without one pin on first contact."""
        bucket = await self.stream.key_value(subjects.RELEASES)
        await bucket.put(subjects.SIGNING_KEY, key.to_text().encode())

    @raises_link_error
    async def signing_key(self) -> minisign.PublicKey | None:
        """The key that devices of this broker trust on first contact; None if no server has run there yet.

        Raises LinkError and SignatureError.
        """
        bucket = await self.stream.key_value(subjects.RELEASES)
        try:
            entry = await bucket.get(subjects.SIGNING_KEY)
        except nats.js.errors.KeyNotFoundError:
            return None
        return minisign.PublicKey.from_text((entry.value or b"").decode(errors="replace"))

    @raises_link_error
    async def learnt(self) -> dict[str, bytes]:
        """What devices learnt while running their tables (`runtime_edge.policy.online_learner.Learnt`), by device."""
        bucket = await self.stream.key_value(subjects.LEARNT)
        found: dict[str, bytes] = {}
        for device in filter(subjects.is_device, await bucket_keys(self.stream, subjects.LEARNT)):
            with contextlib.suppress(nats.js.errors.KeyNotFoundError):
                found[device] = (await bucket.get(device)).value or b""
        return found

    async def presence(self) -> dict[str, dict[str, Any]]:
        """The last report of every device that is present. Raises LinkError."""
        return {device: report for device, (report, _) in (await self.last_reports()).read.items()}

    @raises_link_error
    async def last_reports(self) -> LastReports:
        """The last report of every device that is present."""
        stream, found = subjects.bucket_stream(subjects.PRESENCE), LastReports()
        for device in await bucket_keys(self.stream, subjects.PRESENCE):
            subject = subjects.bucket_subject(subjects.PRESENCE, device)
            if not subjects.is_device(device):
                found.unreadable[device] = f"{subject}: no device has this name"
                continue
            try:
                stored = await self.stream.get_last_msg(stream, subject, direct=True)
                if "KV-Operation" in (stored.headers or {}):  # it was deleted
                    continue
                report = decode_report(stored.data or b"{}", subject)
            except nats.js.errors.NotFoundError:
                continue
            except FormatError as exc:
                found.unreadable[device] = str(exc)
                continue
            age_s = (datetime.now(timezone.utc) - stored.time).total_seconds() if stored.time else 0.0
            found.read[device] = (report, max(age_s, 0.0))
        return found

    async def server_status(self) -> dict[str, object]:
        """A running server's status. Raises LinkError if none answers."""
        try:
            answer = await self.client.request(STATUS_SUBJECT, b"", timeout=3.0)
        except BROKER_ERRORS as exc:
            raise self.explained(exc, NO_SERVER) from None
        return decode(answer.data, dict[str, object], "the server's status", MAX_MESSAGE_BYTES, LinkError)

    async def create(self, replicas: int = 1) -> None:
        """Create the missing streams and buckets, each on `replicas` brokers.

        Raises what the library raises.
        """
        streams = all_streams()
        deadline = time.monotonic() + _ELECTION_S
        for config in streams:
            while True:
                try:
                    await self._make(config.evolve(num_replicas=replicas))
                    break
                except (nats.js.errors.APIError, asyncio.TimeoutError) as exc:
                    check_store(exc, config, len(streams), self.url)
                    # The brokers of a cluster are still finding each other, or one alone is busy.
                    final = not isinstance(exc, _NOT_YET) or (self.client.alone and names_setting(self._cause(exc)))
                    if final or time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(_AGAIN_S)

    async def _make(self, config: StreamConfig) -> None:
        try:
            await self.stream.add_stream(config)
        except nats.js.errors.BadRequestError as exc:
            if exc.err_code != _EXISTS:
                raise
            # It was made by an earlier version, or with other replicas.
            await self.stream.update_stream(config)


def released_bundle(bundle: Bundle, rollback: bool = False) -> ReleasedBundle:
    """A bundle as a release record describes it."""
    signature = bundle.path / SIGNATURE
    return ReleasedBundle(
        generation=bundle.manifest.info.generation,
        manifest=bundle.digest,
        signature=signature.read_text() if signature.exists() else "",
        rollback=rollback,
    )


async def _has(store: object, name: str) -> bool:
    try:
        await store.get_info(name)  # type: ignore[attr-defined]
    except nats.js.errors.ObjectNotFoundError:
        return False
    return True


async def _put(store: object, name: str, data: bytes) -> int:
    await store.put(name, data)  # type: ignore[attr-defined]
    return len(data)
