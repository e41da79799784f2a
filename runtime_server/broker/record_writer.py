"""Puts signed records into the broker's buckets, each with a higher number than any earlier one under its key."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import nats.js.errors
from nats.js.client import JetStreamContext
from nats.js.kv import KeyValue

from runtime_edge.errors import FormatError
from runtime_edge.formats import minisign
from runtime_edge.formats.records.envelope import ABOUT, MAX_NUMBER, Kind, Record, open_record, seal
from runtime_edge.formats.records.numbers import RecordNumbers
from runtime_server.broker.bucket_keys import bucket_keys

_LOG = logging.getLogger(__name__)


def clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class SignedRecordWriter:
    """Writes tables, heads, releases and adaptations.

    A record's number is the clock's milliseconds, or one more than the highest earlier number if that is larger. The
    highest earlier number is the one on the broker or, with `state`, the highest ever seen here
    (`<state>/numbers.json`). The numbers of records signed with another key are ignored.
    """

    def __init__(self, state: Path | None = None, clock: Callable[[], int] = clock_ms) -> None:
        self._clock = clock
        self._numbers = None if state is None else RecordNumbers(state / "numbers.json")

    async def put(
        self, stream: JetStreamContext, kind: Kind, key: str, body: bytes, secret: minisign.SecretKey | None
    ) -> int:
        """Store a record under a key; returns its size, bytes. Raises what the library raises."""
        bucket = await stream.key_value(ABOUT[kind].bucket)
        while True:
            present, revision = await _present(bucket, key)
            number = self._next(present, kind, key, secret)
            data = seal(kind, key, number, body, secret)
            try:
                await bucket.update(key, data, last=revision)
            except nats.js.errors.KeyWrongLastSequenceError:
                continue  # somebody else was faster: the next number is above theirs
            self._note(data, kind, key, secret)
            return len(data)

    async def upgrade(self, stream: JetStreamContext, secret: minisign.SecretKey) -> None:
        """Number the records that an earlier version signed, and log which numbered records were put back.

        Raises what the library raises.
        """
        for kind in ("table", "head"):
            bucket = await stream.key_value(ABOUT[kind].bucket)
            for key in await bucket_keys(stream, ABOUT[kind].bucket):
                data, _ = await _present(bucket, key)
                record = _opened(data, kind, key, secret)
                if record is None:
                    continue
                try:
                    if self._numbers is not None:
                        self._numbers.accept(record, secret.public, record.name)
                except FormatError as exc:
                    _LOG.warning("broker: %s", exc)
                    continue
                if record.number == 0:
                    await self.put(stream, kind, key, record.body, secret)

    def _next(self, present: bytes | None, kind: Kind, key: str, secret: minisign.SecretKey | None) -> int:
        record = None if secret is None else _opened(present, kind, key, secret)
        highest = 0 if record is None else record.number
        if self._numbers is not None and secret is not None:
            highest = max(highest, self._numbers.highest(f"{kind} {key}", secret.public))
        return min(max(self._clock(), highest + 1), MAX_NUMBER)

    def _note(self, data: bytes, kind: Kind, key: str, secret: minisign.SecretKey | None) -> None:
        record = None if secret is None else _opened(data, kind, key, secret)
        if self._numbers is not None and secret is not None and record is not None:
            self._numbers.accept(record, secret.public, record.name)


def _opened(data: bytes | None, kind: Kind, key: str, secret: minisign.SecretKey) -> Record | None:
    """A record that was signed with this key for this bucket key, or None."""
    try:
        return None if data is None else open_record(data, kind, key, secret.public, f"{kind} {key}")
    except FormatError:
        return None


async def _present(bucket: KeyValue, key: str) -> tuple[bytes | None, int]:
    """The value of a key and its revision, which is 0 if the key never had a value."""
    try:
        entry = await bucket.get(key)
    except nats.js.errors.KeyNotFoundError as exc:
        # A deleted key has a revision too.
        return None, getattr(exc.entry, "revision", None) or 0
    return entry.value, entry.revision or 0
