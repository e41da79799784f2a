"""Signed records that a device receives one by one: from the broker, while it runs, and from its own disk.

For tables and heads, a record for this very device takes precedence over the one for all devices of its target.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import LinkError, SscError, WaitsForBudget
from runtime_edge.formats import subjects
from runtime_edge.formats.records.envelope import ABOUT, Kind, Record, open_record
from runtime_edge.formats.records.numbers import RecordNumbers
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.update_reports import UpdateReports

_LOG = logging.getLogger(__name__)
_Record = TypeVar("_Record")


class RecordKeeper:
    """Opens records of one kind, and refuses older ones. The last one used is in `<state>/<kind>.json`."""

    def __init__(self, kind: Kind, config: DeviceConfig, store: BundleStore, reports: UpdateReports) -> None:
        self._kind, self._store = kind, store
        self._numbers = RecordNumbers(config.state / "numbers.json", reports.numbers_damaged)
        self.path = config.state / f"{kind}.json"

    def open(self, data: bytes, key: str, source: str) -> Record:
        """Check and note a record that came as the value of a key; without a trusted key its number is not checked.

        Raises FormatError (OldRecord and SignatureError among them).
        """
        trusted = self._store.trusted
        record = open_record(data, self._kind, key, trusted, source)
        if trusted is not None:
            self._numbers.accept(record, trusted, source)
        return record

    def open_kept(self, data: bytes, source: str) -> Record:
        """Check the last record used, whatever newer ones exist by now. Raises FormatError."""
        trusted = self._store.trusted
        record = open_record(data, self._kind, None, trusted, source)
        if trusted is not None:
            self._numbers.in_use(record, trusted)
        return record

    def kept(self) -> bytes | None:
        """The last record used. Raises the kind's error if it cannot be read."""
        about = ABOUT[self._kind]
        data = read_checked(self.path, about.limit_bytes, about.error)
        if data is not None:
            with contextlib.suppress(SscError):
                self.open_kept(data, str(self.path))
        return data

    def keep(self, data: bytes) -> None:
        """Store a record for the next start; if that fails, it is still used now."""
        try:
            write_checked(self.path, data)
        except OSError as exc:
            _LOG.warning("the %s cannot be kept: %s", self._kind, exc)


Use = Callable[[_Record, bytes, str], Awaitable[bool]]
"""Takes a received record, as read and as bytes, with its source. Returns False if it is in use already; raises
SscError if it does not fit what runs, or WaitsForBudget if what it needs may not be fetched now."""


@dataclass(frozen=True)
class RecordKind(Generic[_Record]):
    """What distinguishes tables from heads."""

    name: Kind
    read: Callable[[bytes, str], _Record]
    """Reads the body of a record; raises SscError naming the source."""


class ReceivedRecords(Generic[_Record]):
    """The records of one kind for one device."""

    def __init__(
        self,
        kind: RecordKind[_Record],
        config: DeviceConfig,
        connection: Transport | None,
        store: BundleStore,
        reports: UpdateReports,
    ) -> None:
        self._kind, self._connection, self._store, self._reports = kind, connection, store, reports
        self._bucket, self._keeper = ABOUT[kind.name].bucket, RecordKeeper(kind.name, config, store, reports)
        self._own_key = subjects.table_key(config.target, config.device)
        self._keys = [self._own_key, subjects.table_key(config.target)]
        self._own = False
        self.path, self.kept, self.keep = self._keeper.path, self._keeper.kept, self._keeper.keep

    async def present(self) -> list[tuple[str, bytes]]:
        """What the broker has now, by key, this device's own record first; empty without a connection."""
        found = []
        if self._connection is not None and self._connection.connected:
            for key in self._keys:
                with contextlib.suppress(LinkError):
                    record = await self._connection.value(self._bucket, key)
                    if record is not None:
                        found.append((key, record))
        return found

    async def watch(self, use: Use[_Record]) -> None:
        """Take later records as they come."""
        if self._connection is not None:
            await self._connection.watch(self._bucket, self._keys, partial(self.take, use=use))

    async def take(self, key: str, record: bytes, use: Use[_Record]) -> None:
        """Use and keep a record, or report why it is refused. Raises LinkError; then it may be tried again."""
        if self._own and key != self._own_key:
            return
        try:
            if self._connection is not None:
                await self._store.pin_first(self._connection)
            source = f"{self._kind.name} {key}"
            used = await use(self.open(record, key, source), record, source)
            self.chosen(key)
        except LinkError:
            raise
        except WaitsForBudget as exc:
            _LOG.info("%s %s: %s", self._kind.name, key, exc)
            return
        except SscError as exc:
            await self._reports.failed(f"{self._kind.name}_refused", exc)
            return
        if used:
            self.keep(record)

    def open(self, data: bytes, key: str, source: str) -> _Record:
        """Check the value of a key and read it. Raises SscError naming the source."""
        return self._kind.read(self._keeper.open(data, key, source).body, source)

    def open_kept(self, data: bytes, source: str) -> _Record:
        """Check and read the last record used. Raises SscError naming the source."""
        return self._kind.read(self._keeper.open_kept(data, source).body, source)

    def chosen(self, key: str) -> None:
        """Note that the record of that key is in use: if it is this device's own, no other is taken from now on."""
        self._own = key == self._own_key
