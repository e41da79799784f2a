"""What the broker keeps for a device: values of keys, news of them, and objects.

Read directly, by subject, and never through a consumer: a subject says all that is asked for, so the broker can hold a
device to its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncGenerator

import msgspec
import nats.errors
import nats.js.errors
import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg

from runtime_edge import subjects
from runtime_edge.broker import BROKER_ERRORS
from runtime_edge.errors import FormatError, LinkError
from runtime_edge.tasks import next_within

_PIECE_PATIENCE_S = 60.0
_RECHECK_S = 300.0
"""How often a followed key is read again although no news of it came."""


class _ObjectInfo(msgspec.Struct):
    """What the object store says of an object (NATS ADR-20), as far as it is needed to read it."""

    nuid: str
    size: int = 0
    chunks: int = 0
    digest: str = ""
    deleted: bool = False


async def value(client: Client, bucket: str, key: str) -> bytes | None:
    """The present value of a key, or None. Raises what the library raises."""
    stored = await _last(client, subjects.bucket_stream(bucket), subjects.bucket_subject(bucket, key))
    return None if stored is None else _value(stored)


async def news(client: Client, bucket: str, key: str, random: np.random.Generator) -> AsyncGenerator[bytes, None]:
    """The present value of a key and each later one, by revision; ends when the connection does."""
    repeated = asyncio.Queue[Msg]()
    stream, subject = subjects.bucket_stream(bucket), subjects.bucket_subject(bucket, key)
    subscription = await client.subscribe(subjects.news(bucket, key), cb=repeated.put)
    newest = 0
    try:
        stored = await _last(client, stream, subject)
        while client.is_connected:
            if stored is not None and (stored.seq or 0) > newest:
                newest = stored.seq or 0
                if (value := _value(stored)) is not None:
                    yield value
            message = await next_within(repeated, _RECHECK_S * random.uniform(0.5, 1.0))
            stored = await _last(client, stream, subject) if message is None else _repeated(message)
    finally:
        if client.is_connected:
            with contextlib.suppress(*BROKER_ERRORS):
                await subscription.unsubscribe()


async def _last(client: Client, stream: str, subject: str) -> RawStreamMsg | None:
    """The last message a stream holds of a subject; None when it has none or is not there."""
    try:
        return await client.jetstream().get_last_msg(stream, subject, direct=True)
    except (nats.js.errors.NotFoundError, nats.errors.NoRespondersError):
        return None


async def fetch_object(client: Client, name: str, limit_bytes: int) -> bytes:
    """An object of the bundles store. Raises LinkError, FormatError, and what the library raises.

    Read piece by piece, each asked for when the one before has come: as fast as the link is, and never faster.
    """
    stream, prefix = f"OBJ_{subjects.BUNDLES}", f"$O.{subjects.BUNDLES}"
    stored = await _last(client, stream, f"{prefix}.M.{base64.urlsafe_b64encode(name.encode()).decode()}")
    if stored is None:
        raise LinkError(f"object {name} cannot be fetched (not in the store)")
    try:
        info = msgspec.json.decode(stored.data or b"", type=_ObjectInfo)
    except msgspec.DecodeError as exc:
        raise FormatError(f"object {name}: damaged in the broker's store ({exc})") from None
    if info.deleted:
        raise LinkError(f"object {name} cannot be fetched (deleted)")
    if info.size > limit_bytes:
        raise FormatError(f"object {name}: {info.size} bytes, more than the {limit_bytes} expected")
    jetstream, data, sequence = client.jetstream(timeout=_PIECE_PATIENCE_S), bytearray(), 1
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
