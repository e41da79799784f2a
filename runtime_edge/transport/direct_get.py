"""Reads what the broker keeps for a device: values of keys, news of them, and objects.

It reads directly, by subject, and never through a consumer: the subject alone identifies a request, so the broker can
restrict a device to its own data.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Callable

import msgspec
import nats.errors
import nats.js.errors
import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg

from runtime_edge.base.aio import next_within
from runtime_edge.base.broker_errors import BROKER_ERRORS
from runtime_edge.errors import FormatError, LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.strict import decode

_PIECE_PATIENCE_S = 60.0
_MAX_INFO_BYTES = 64 << 10
_BRISK_S, _MOST_PIECES = 0.5, 16
RECHECK_S = 1200.0
"""Seconds after which a followed key is read again without news of it. It is read whole: a table is some 20 kB."""


class ObjectInfo(msgspec.Struct):
    """The object store's description of an object (NATS ADR-20), as far as reading needs it."""

    nuid: str
    size: int = 0
    digest: str = ""
    deleted: bool = False

    @classmethod
    def from_json(cls, data: bytes, name: str) -> ObjectInfo:
        """The description of the object `name`. Raises FormatError."""
        return decode(data, cls, f"object {name}: damaged in the broker's store", _MAX_INFO_BYTES)


async def value(client: Client, bucket: str, key: str) -> bytes | None:
    """The present value of a key, or None. Raises what the library raises."""
    stored = await _last(client, subjects.bucket_stream(bucket), subjects.bucket_subject(bucket, key))
    return None if stored is None else _value(stored)


async def news(
    client: Client, bucket: str, key: str, random: np.random.Generator, recheck_s: float = RECHECK_S
) -> AsyncGenerator[bytes, None]:
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
            message = await next_within(repeated, recheck_s * random.uniform(0.5, 1.0))
            stored = await _last(client, stream, subject) if message is None else _repeated(message)
    finally:
        if client.is_connected:
            with contextlib.suppress(*BROKER_ERRORS):
                await subscription.unsubscribe()


async def _last(client: Client, stream: str, subject: str) -> RawStreamMsg | None:
    """The last message that a stream holds on a subject; None if it has none, or if the stream does not exist."""
    try:
        return await client.jetstream().get_last_msg(stream, subject, direct=True)
    except (nats.js.errors.NotFoundError, nats.errors.NoRespondersError):
        return None
    except (LookupError, ValueError, TypeError, AttributeError):  # raised for an answer without a message
        raise nats.errors.ProtocolError from None


async def object_info(client: Client, name: str) -> ObjectInfo | None:
    """The description of an object in the bundles store. Raises FormatError, and what the library raises."""
    subject = f"$O.{subjects.BUNDLES}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
    stored = await _last(client, f"OBJ_{subjects.BUNDLES}", subject)
    return None if stored is None else ObjectInfo.from_json(stored.data or b"", name)


async def fetch_object(client: Client, name: str, limit_bytes: int, on_piece: Callable[[int], None]) -> bytes:
    """An object from the bundles store; `on_piece` is called with the number of bytes of each piece that arrives.

    Raises LinkError, FormatError, and what the library raises.

    Read a few pieces at a time, more of them the faster they come: a long path then costs few round trips, and on a
    thin link the answers to frames queue behind one piece at most.
    """
    stream, prefix = f"OBJ_{subjects.BUNDLES}", f"$O.{subjects.BUNDLES}"
    info = await object_info(client, name)
    if info is None:
        raise LinkError(f"object {name} cannot be fetched (not in the store)")
    if info.deleted:
        raise LinkError(f"object {name} cannot be fetched (deleted)")
    if info.size > limit_bytes:
        raise FormatError(f"object {name}: {info.size} bytes, more than the {limit_bytes} expected")
    data, sequence, count = bytearray(), 1, 1
    while len(data) < info.size:
        started = time.monotonic()
        room = info.size - len(data)
        for piece in await _batch(client, stream, f"{prefix}.C.{info.nuid}", sequence, count, room):
            data += piece.data
            on_piece(len(piece.data))
            sequence = _sequence(piece) + 1
        brisk = time.monotonic() - started < _BRISK_S
        count = min(2 * count, _MOST_PIECES) if brisk else max(count // 2, 1)
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
    if len(data) != info.size or info.digest.removeprefix("SHA-256=") != digest:
        raise FormatError(f"object {name}: damaged in the broker's store (its digest does not match)")
    return bytes(data)


async def _batch(client: Client, stream: str, subject: str, sequence: int, count: int, room: int) -> list[Msg]:
    """One to `count` messages of a subject, from a sequence number on, which the broker sends in one go (NATS ADR-31).

    Once they hold `room` bytes, no more are taken. A broker without batches (before 2.11) sends one message.

    Raises NotFoundError if there is none, and what the library raises.
    """
    arrived, inbox = asyncio.Queue[Msg](), client.new_inbox()
    subscription, messages = await client.subscribe(inbox, cb=arrived.put), list[Msg]()
    try:
        wanted = msgspec.json.encode({"seq": sequence, "next_by_subj": subject, "batch": count})
        await client.publish(f"$JS.API.DIRECT.GET.{stream}", wanted, reply=inbox)
        while len(messages) < count and room > 0:
            message = await next_within(arrived, _PIECE_PATIENCE_S)
            if message is None:
                raise nats.errors.TimeoutError
            if not message.data:  # the end of the batch, or nothing at all
                break
            messages.append(message)
            room -= len(message.data)
            if "Nats-Num-Pending" not in (message.headers or {}):
                break
    finally:
        if client.is_connected:
            await subscription.unsubscribe()
    if not messages:
        raise nats.js.errors.NotFoundError
    return messages


def _value(stored: RawStreamMsg) -> bytes | None:
    """The value of a key; None if the entry marks it as deleted."""
    return None if "KV-Operation" in (stored.headers or {}) else stored.data or None


def _repeated(message: Msg) -> RawStreamMsg:
    """A stored value that the broker has repeated to its watchers."""
    return RawStreamMsg(seq=_sequence(message), data=message.data, headers=message.headers or {})


def _sequence(message: Msg) -> int:
    """A stored message's position in its stream; 0 if it does not say."""
    sequence = (message.headers or {}).get("Nats-Sequence", "")
    return int(sequence) if sequence.isdecimal() else 0
