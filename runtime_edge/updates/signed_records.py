"""Signed records that a device takes one by one, tables and heads: what the broker has, what comes, what is kept.

The record for this very device comes before the one for all devices of its target.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import FormatError, LinkError, SscError
from runtime_edge.formats import minisign, subjects
from runtime_edge.transport.connection import Connection
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.update_reports import UpdateReports

_LOG = logging.getLogger(__name__)
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class RecordKind(Generic[_Record]):
    """What tells tables from heads."""

    name: str
    bucket: str
    limit_bytes: int
    error: type[FormatError]
    open: Callable[[bytes, minisign.PublicKey | None, str], _Record]
    """Checks and reads a record; raises SscError naming the source."""


class SignedRecords(Generic[_Record]):
    """The records of one kind for one device. The last one used lies in `<state>/<name>.json`, as it came."""

    def __init__(
        self,
        kind: RecordKind[_Record],
        config: DeviceConfig,
        connection: Connection | None,
        store: BundleStore,
        reports: UpdateReports,
        use: Callable[[_Record, bytes, str], bool],
    ) -> None:
        """`use` takes one that came, as read and as bytes, with its source.

        It returns False when it is in use already, and raises SscError when it does not fit what runs.
        """
        self._kind, self._connection, self._store, self._reports, self._use = kind, connection, store, reports, use
        self._own_key = subjects.table_key(config.target, config.device)
        self._keys = [self._own_key, subjects.table_key(config.target)]
        self._own = False
        self.path = config.state / f"{kind.name}.json"

    async def present(self) -> list[tuple[str, bytes]]:
        """What the broker has now, by its key, this device's own first; nothing without a connection."""
        found = []
        if self._connection is not None and self._connection.connected:
            for key in self._keys:
                with contextlib.suppress(LinkError):
                    record = await self._connection.value(self._kind.bucket, key)
                    if record is not None:
                        found.append((key, record))
        return found

    async def watch(self) -> None:
        """Take later ones as they come."""
        if self._connection is not None:
            await self._connection.watch(self._kind.bucket, self._keys, self.take)

    async def take(self, key: str, record: bytes) -> None:
        """Use and keep a record, or report why it is refused. Raises LinkError; then it may be tried again."""
        if self._own and key != self._own_key:
            return
        try:
            if self._connection is not None:
                await self._store.pin_first(self._connection)
            source = f"{self._kind.name} {key}"
            used = self._use(self.open(record, source), record, source)
            self.chosen(key)
        except LinkError:
            raise
        except SscError as exc:
            await self._reports.failed(f"{self._kind.name}_refused", exc)
            return
        if used:
            self.keep(record)

    def open(self, record: bytes, source: str) -> _Record:
        """Check a record's signature and read it. Raises SscError naming the source."""
        return self._kind.open(record, self._store.trusted, source)

    def chosen(self, key: str) -> None:
        """The record of that key is in use: once it is this device's own, no other one is taken."""
        self._own = key == self._own_key

    def kept(self) -> bytes | None:
        """The last one used. Raises the kind's error when it cannot be read."""
        return read_checked(self.path, self._kind.limit_bytes, self._kind.error)

    def keep(self, record: bytes) -> None:
        """Store the table for the next start; if that fails, it is still used now."""
        try:
            write_checked(self.path, record)
        except OSError as exc:
            _LOG.warning("the %s cannot be kept: %s", self._kind.name, exc)
