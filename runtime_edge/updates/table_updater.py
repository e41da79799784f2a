"""Which splitter table a device uses: the newest one on the broker that fits what runs, or the last one used."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import BundleError, SscError, TableError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.privacy_info import Payloads, forbidden_kinds
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.records.table import LOCAL, SplitterTable, cut_position
from runtime_edge.inference.variants import choose_variant
from runtime_edge.policy.splitter import Splitter
from runtime_edge.policy.surroundings import measured
from runtime_edge.transport.privacy import floor_index
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.received_records import ReceivedRecords, RecordKind
from runtime_edge.updates.update_reports import UpdateReports

_LOG = logging.getLogger(__name__)
_USED_LAST = "used last"
Deepen = Callable[[int], Awaitable[None]]
"""Gets this many of the first blocks ready to run. Raises LinkError, WaitsForBudget, or what is wrong with them."""


async def _nothing(blocks: int) -> None:
    """Do nothing: there is no server to ask."""


def make_splitter(bundle: Bundle, table: SplitterTable, config: DeviceConfig) -> Splitter:
    """A splitter for a bundle's cuts that keeps the device's privacy floor.

    Raises BundleError if the bundle has no such cut or lacks the audit that the floor needs, TableError if the table
    was made for other cuts, has no action above the floor, or asks for a state variable that is not measured here.
    """
    manifest = bundle.manifest
    # With `local` as the floor nothing is shipped whatever is chosen, and a table need not have that action.
    floor = 0 if config.min_cut == LOCAL else floor_index(manifest, config.min_cut)
    splitter = Splitter(
        table,
        [cut.name for cut in manifest.info.cuts],
        widths=manifest.widths,
        exits=manifest.exit_cuts,
        forbidden=forbidden_payloads(manifest, config),
        min_cut_index=floor,
        seed=config.seed,
    )
    table.lookup({"uncertainty": 1.0, "cpu": 0.0, "bandwidth_mbps": 1.0, "rtt_ms": 1.0, **measured()})
    return splitter


def forbidden_payloads(manifest: Manifest, config: DeviceConfig) -> Payloads:
    """What a device may not ship of a bundle because of `max_word_recognition`. Raises BundleError."""
    if config.min_cut == LOCAL:
        return frozenset()
    cuts = [cut.name for cut in manifest.info.cuts]
    most_words, privacy = config.max_word_recognition, manifest.info.privacy
    return forbidden_kinds(privacy, most_words, cuts, manifest.widths, config.encoding)


def blocks_needed(manifest: Manifest, table: SplitterTable, config: DeviceConfig) -> int:
    """How many of a bundle's first blocks a device runs: up to the deepest cut that the table may choose here.

    All of them if an action is `local`, in a cascade, or if nothing is shipped. Raises BundleError or TableError.
    """
    cuts = [cut.name for cut in manifest.info.cuts]
    table.check_cuts(cuts)
    last, floor = len(cuts) - 1, floor_index(manifest, config.min_cut)
    if config.broker is None or config.cascade or floor > last:
        return last
    return max((min(at, last) for at in (cut_position(name, cuts) for name in table.cuts) if at >= floor), default=last)


def blocks_there(bundle: Bundle, config: DeviceConfig) -> int:
    """How many of a bundle's first blocks are here, in the variant that this device runs."""
    return bundle.blocks_there(choose_variant(bundle.manifest, config.variant, config.target))


class FirstTable:
    """Chooses the table that a device starts with."""

    def __init__(
        self, config: DeviceConfig, connection: Transport | None, store: BundleStore, reports: UpdateReports
    ) -> None:
        self._config, self._reports = config, reports
        self._records = ReceivedRecords(RecordKind("table", self._read), config, connection, store, reports)

    async def records(self) -> list[tuple[str, bytes]]:
        """Tables to choose from, with their sources: this device's, the target's, the one used last."""
        found, kept = await self._records.present(), self._records.kept()
        return found if kept is None else [*found, (_USED_LAST, kept)]

    async def choose(self, bundle: Bundle, records: list[tuple[str, bytes]]) -> TableUpdater:
        """The first record that fits a bundle and those of its blocks that are here, or else the bundle's own table.

        Raises BundleError or TableError.
        """
        lacks_blocks = False
        for key, record in records:
            try:
                table = self._open(key, record)
                make_splitter(bundle, table, self._config)
                if not self._runs(bundle, table):
                    lacks_blocks = True
                    _LOG.info("table %s is taken once its blocks are here", key)  # it comes again
                    continue
            except SscError as exc:
                await self._reports.failed("table_refused", exc)
                continue
            self._records.chosen(key)
            self._records.keep(record)
            break
        else:
            table = self._bundles_own(bundle, lacks_blocks)
        return TableUpdater(self._config, self._records, bundle, table)

    def blocks_needed(self, manifest: Manifest, records: list[tuple[str, bytes]]) -> int:
        """How many of a bundle's first blocks are needed by the first record that fits it; all if none fits."""
        for key, record in records:
            with contextlib.suppress(SscError):
                return blocks_needed(manifest, self._open(key, record), self._config)
        return len(manifest.info.blocks)

    def _open(self, key: str, record: bytes) -> SplitterTable:
        opened = self._records.open_kept if key == _USED_LAST else partial(self._records.open, key=key)
        return opened(record, source=f"table {key}")

    def _bundles_own(self, bundle: Bundle, lacks_blocks: bool) -> SplitterTable:
        """The table that came with a bundle; `lacks_blocks`: there are others, but they need more blocks."""
        try:
            table = _own_table(bundle, self._config.target)
            make_splitter(bundle, table, self._config)
            lacks_blocks = not self._runs(bundle, table)
        except SscError:
            if not lacks_blocks:
                raise
        if lacks_blocks:
            raise BundleError(
                f"{bundle.path}: of its blocks the first {blocks_there(bundle, self._config)} are here, too few to run "
                "by itself; start once with --broker, or bring all of it here by `ssc edge install`"
            )
        return table

    def _runs(self, bundle: Bundle, table: SplitterTable) -> bool:
        """Whether the blocks that a table needs are here."""
        return blocks_needed(bundle.manifest, table, self._config) <= blocks_there(bundle, self._config)

    def _read(self, data: bytes, source: str) -> SplitterTable:
        table = SplitterTable.from_json(data, source)
        if table.target != self._config.target:
            raise TableError(f"{source}: made for target {table.target!r}, not for {self._config.target!r}")
        return table


class TableUpdater:
    """Swaps tables between windows; hands a table over only if it fits the bundle that then runs."""

    def __init__(
        self, config: DeviceConfig, records: ReceivedRecords[SplitterTable], bundle: Bundle, table: SplitterTable
    ) -> None:
        """Begins with the bundle and the table that run."""
        self._config, self._records, self._bundle = config, records, bundle
        self.table = table
        """The table in use, or handed over next."""
        self._early: tuple[SplitterTable, bytes, str] | None = None
        """The latest table, its record and its source: it may have come before the bundle or the blocks it is for."""
        self._next: SplitterTable | None = None
        self._on_ready: Callable[[], None] = lambda: None
        self._deepen: Deepen = _nothing

    async def follow(self, on_ready: Callable[[], None], deepen: Deepen = _nothing) -> None:
        """Watch for later tables; `on_ready` is called when one can be taken; `deepen` fetches blocks it needs."""
        self._on_ready, self._deepen = on_ready, deepen
        await self._records.watch(self._came)

    def blocks_needed(self, manifest: Manifest) -> int:
        """How many of a bundle's first blocks are needed by the table that would run with it; all if there is none."""
        for table in (self.table, *(early[0] for early in (self._early,) if early is not None)):
            with contextlib.suppress(SscError):
                return blocks_needed(manifest, table, self._config)
        return len(manifest.info.blocks)

    async def take_early(self) -> None:
        """Take the latest table that came and was not used, if it can be used by now."""
        if self._early is not None:
            _, record, source = self._early
            await self._records.take(source.removeprefix("table "), record, self._came)

    def take(self) -> SplitterTable | None:
        """The table that should take over now."""
        ready, self._next = self._next, None
        return ready

    def needed_for(self, bundle: Bundle) -> tuple[SplitterTable, bytes] | None:
        """None if the table in use fits a bundle, or else the one that came before the bundle. Raises TableError."""
        try:
            make_splitter(bundle, self.table, self._config)
        except TableError:
            if self._early is None:
                raise
            make_splitter(bundle, self._early[0], self._config)
            return self._early[:2]
        return None

    def turn_to(self, bundle: Bundle, needed: tuple[SplitterTable, bytes] | None) -> None:
        """Switch to a bundle that takes over, with the table that it needs."""
        self._bundle = bundle
        if needed is not None:
            self.table = self._next = needed[0]
            self._records.keep(needed[1])

    async def _came(self, table: SplitterTable, record: bytes, source: str) -> bool:
        if table == self.table:
            return False
        self._early = (table, record, source)
        make_splitter(self._bundle, table, self._config)
        await self._deepen(blocks_needed(self._bundle.manifest, table, self._config))
        make_splitter(self._bundle, table, self._config)  # another bundle may have taken over meanwhile
        self.table = self._next = table
        self._on_ready()
        return True


def _own_table(bundle: Bundle, target: str) -> SplitterTable:
    known = bundle.manifest.info.targets.get(target)
    if known is not None and not (bundle.path / known.table).exists():
        raise TableError(f"--target {target}: no splitter table for the cuts of {bundle.path}; push one")
    return bundle.table(target)
