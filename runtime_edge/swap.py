"""Which bundle and table a device runs: the first ones, and every later one, ready to take over between windows."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

import msgspec

from runtime_edge import subjects
from runtime_edge.bundle import Bundle, open_bundle
from runtime_edge.config import DeviceConfig
from runtime_edge.engine import Engine
from runtime_edge.errors import LinkError, SscError, UsageError
from runtime_edge.link import Link
from runtime_edge.releases import decode_release, open_table
from runtime_edge.table import SplitterTable
from runtime_edge.updates import BundleStore, store_table, stored_table

_LOG = logging.getLogger(__name__)


class Swap:
    """Watches releases and tables; prepares and self-tests in the compute thread, hands over when asked."""

    def __init__(self, config: DeviceConfig, link: Link | None, executor: Executor) -> None:
        self._config, self._link, self._executor = config, link, executor
        self._store = BundleStore(config.state, config.trusted)
        self._bundle: Bundle | None = None
        self._table: SplitterTable | None = None
        self._own_table = False
        self._next_engine: Engine | None = None
        self._next_table: SplitterTable | None = None
        self._installing = asyncio.Lock()
        self.failures = 0

    async def first(self) -> tuple[Engine, SplitterTable]:
        """The bundle and table to start with: given, newest released, or last used. Raises SscError."""
        self._bundle = open_bundle(self._config.bundle, self._store.trusted) if self._config.bundle else None
        if self._link is not None and self._link.connected:
            await self._meet_server(self._link)
        self._bundle = self._bundle or self._store.current()
        if self._bundle is None:
            raise LinkError("no bundle on this device yet: give --bundle, or --broker of a server that released one")
        engine = await self._prepare(self._bundle)
        self._table = self._table or self._first_table(self._bundle)
        return engine, self._table

    async def follow(self) -> None:
        """Watch for later releases and tables."""
        if self._link is None:
            return
        target, device = self._config.target, self._config.device
        keys = [subjects.table_key(target), subjects.table_key(target, device)]
        await self._link.watch(subjects.TABLES, keys, self._on_table)
        await self._link.watch(subjects.RELEASES, [target], self._on_release)

    def take(self) -> tuple[Engine | None, SplitterTable | None]:
        """What should take over now."""
        ready = self._next_engine, self._next_table
        self._next_engine = self._next_table = None
        return ready

    async def report(self, event: str, **details: object) -> None:
        """Tell the server, best effort."""
        if self._link is not None:
            body = msgspec.json.encode({"event": event, "device": self._config.device, **details})
            await self._link.publish(subjects.events(self._config.device), body)

    async def _meet_server(self, link: Link) -> None:
        key = await link.value(subjects.RELEASES, subjects.SIGNING_KEY)
        if key is not None:
            self._store.pin(key.decode(errors="replace"))
        for name in (
            subjects.table_key(self._config.target, link.device),
            subjects.table_key(self._config.target),
        ):
            record = await link.value(subjects.TABLES, name)
            if record is not None and self._table is None:
                self._table = open_table(record, self._store.trusted, f"table {name}")
                self._own_table = name != self._config.target
                store_table(self._config.state, record)
        record = await link.value(subjects.RELEASES, self._config.target)
        if record is None and self._bundle is None and self._store.current() is None:
            raise UsageError(f"--target {self._config.target}: the server has released nothing for it")
        if record is not None and self._config.bundle is None:
            release = decode_release(record, f"release for {self._config.target}")
            present = self._store.current()
            self._bundle = await self._store.fetch(link, release, self._config.variant, present)

    def _first_table(self, bundle: Bundle) -> SplitterTable:
        record = stored_table(self._config.state)
        if record is not None:
            return open_table(record, self._store.trusted, str(self._config.state / "table.json"))
        return bundle.table(self._config.target)

    async def _prepare(self, bundle: Bundle) -> Engine:
        """Load and self-test in the compute thread; the bundle in use goes on undisturbed until this is done."""
        loop = asyncio.get_running_loop()
        config = self._config
        engine = await loop.run_in_executor(
            self._executor, Engine, bundle, config.variant, config.encoding, config.threads
        )
        await loop.run_in_executor(self._executor, engine.ready)
        if bundle.path.parent == config.state / "bundles":
            self._store.adopt(bundle)
        return engine

    async def _on_table(self, key: str, record: bytes) -> None:
        own = key != subjects.table_key(self._config.target)
        if self._own_table and not own:
            return
        try:
            table = open_table(record, self._store.trusted, f"table {key}")
        except SscError as exc:
            await self._failed("table_refused", exc)
            return
        self._own_table = self._own_table or own
        if table != self._table:
            self._table = self._next_table = table
            store_table(self._config.state, record)

    async def _on_release(self, key: str, record: bytes) -> None:
        async with self._installing:
            try:
                release = decode_release(record, f"release for {key}")
                if self._bundle is not None and release.manifest == self._bundle.digest:
                    return
                assert self._link is not None
                bundle = await self._store.fetch(self._link, release, self._config.variant, self._bundle)
                self._next_engine = await self._prepare(bundle)
                self._bundle = bundle
            except SscError as exc:
                await self._failed("update_failed", exc)
                return
            await self.report("generation", generation=bundle.manifest.info.generation)

    async def _failed(self, event: str, exc: SscError) -> None:
        self.failures += 1
        _LOG.warning("%s: %s", event, exc)
        await self.report(event, reason=str(exc)[:500])
