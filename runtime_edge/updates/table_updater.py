"""Which splitter table a device uses: the newest one on the broker that fits what runs, or the last one used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import SscError, TableError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.table import LOCAL, SplitterTable
from runtime_edge.policy.splitter import Splitter
from runtime_edge.policy.surroundings import measured
from runtime_edge.transport.privacy import floor_index
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.received_records import ReceivedRecords, RecordKind
from runtime_edge.updates.update_reports import UpdateReports

_USED_LAST = "used last"


def make_splitter(bundle: Bundle, table: SplitterTable, config: DeviceConfig) -> Splitter:
    """A splitter for a bundle's cuts that keeps the device's privacy floor.

    Raises BundleError when the bundle has no such cut, TableError when the table was made for other cuts, has no
    action above the floor, or asks for a state variable that is not measured here.
    """
    manifest = bundle.manifest
    # With `local` as the floor nothing is shipped whatever is chosen, and a table need not know that action.
    floor = 0 if config.min_cut == LOCAL else floor_index(manifest, config.min_cut)
    splitter = Splitter(
        table, [cut.name for cut in manifest.info.cuts], widths=manifest.widths, min_cut_index=floor, seed=config.seed
    )
    table.lookup({"uncertainty": 1.0, "cpu": 0.0, "bandwidth_mbps": 1.0, "rtt_ms": 1.0, **measured()})
    return splitter


class FirstTable:
    """Chooses the table that a device starts with."""

    def __init__(
        self, config: DeviceConfig, connection: Transport | None, store: BundleStore, reports: UpdateReports
    ) -> None:
        self._config, self._reports = config, reports
        self._records = ReceivedRecords(RecordKind("table", self._read), config, connection, store, reports)

    async def records(self) -> list[tuple[str, bytes]]:
        """Tables to choose from, by where they are from: this device's, the target's, the one used last."""
        found, kept = await self._records.present(), self._records.kept()
        return found if kept is None else [*found, (_USED_LAST, kept)]

    async def choose(self, bundle: Bundle, records: list[tuple[str, bytes]]) -> TableUpdater:
        """The first of the records that fits a bundle, or else the bundle's own table. Raises TableError."""
        for key, record in records:
            try:
                opened = self._records.open_kept if key == _USED_LAST else partial(self._records.open, key=key)
                table = opened(record, source=f"table {key}")
                make_splitter(bundle, table, self._config)
            except SscError as exc:
                await self._reports.failed("table_refused", exc)
                continue
            self._records.chosen(key)
            self._records.keep(record)
            break
        else:
            table = _own_table(bundle, self._config.target)
            make_splitter(bundle, table, self._config)
        return TableUpdater(self._config, self._records, bundle, table)

    def _read(self, data: bytes, source: str) -> SplitterTable:
        table = SplitterTable.from_json(data, source)
        if table.target != self._config.target:
            raise TableError(f"{source}: made for target {table.target!r}, not for {self._config.target!r}")
        return table


class TableUpdater:
    """Tables swap between windows, and one is only handed over when it fits the bundle that runs then."""

    def __init__(
        self, config: DeviceConfig, records: ReceivedRecords[SplitterTable], bundle: Bundle, table: SplitterTable
    ) -> None:
        """Begins with the bundle and the table that run."""
        self._config, self._records, self._bundle = config, records, bundle
        self.table = table
        """In use, or handed over next."""
        self._early: tuple[SplitterTable, bytes] | None = None
        """A table, and its record, that does not fit what runs: it may have come before the bundle it is for."""
        self._next: SplitterTable | None = None
        self._on_ready: Callable[[], None] = lambda: None

    async def follow(self, on_ready: Callable[[], None]) -> None:
        """Watch for later tables; says when to `take` one."""
        self._on_ready = on_ready
        await self._records.watch(self._came)

    def take(self) -> SplitterTable | None:
        """What should take over now."""
        ready, self._next = self._next, None
        return ready

    def needed_for(self, bundle: Bundle) -> tuple[SplitterTable, bytes] | None:
        """None when the table in use fits a bundle, or else the one that came before it. Raises TableError."""
        try:
            make_splitter(bundle, self.table, self._config)
        except TableError:
            if self._early is None:
                raise
            make_splitter(bundle, self._early[0], self._config)
            return self._early
        return None

    def turn_to(self, bundle: Bundle, needed: tuple[SplitterTable, bytes] | None) -> None:
        """A bundle takes over, and with it the table that it needs."""
        self._bundle = bundle
        if needed is not None:
            self.table = self._next = needed[0]
            self._records.keep(needed[1])

    def _came(self, table: SplitterTable, record: bytes, source: str) -> bool:
        if table == self.table:
            return False
        self._early = (table, record)
        make_splitter(self._bundle, table, self._config)
        self.table = self._next = table
        self._on_ready()
        return True


def _own_table(bundle: Bundle, target: str) -> SplitterTable:
    known = bundle.manifest.info.targets.get(target)
    if known is not None and not (bundle.path / known.table).exists():
        raise TableError(f"--target {target}: no splitter table for the cuts of {bundle.path}; push one")
    return bundle.table(target)
