"""Chooses the bundle and the table that a device starts with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import FormatError, LinkError, SscError, UsageError, WaitsForBudget
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.inference.engine import Engine
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.budgets import Budgets
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.preparation import Preparation
from runtime_edge.updates.table_updater import FirstTable
from runtime_edge.updates.updater import Updater

_LOG = logging.getLogger(__name__)
_FIRST_RELEASE_S = 10.0


async def start_updater(
    config: DeviceConfig,
    connection: Transport | None,
    worker: Worker,
    counts: LoopCounts,
    budgets: Budgets | None = None,
) -> Updater:
    """The updater with what a device starts with, which also takes later bundles and tables. Raises SscError."""
    preparation = Preparation(config, connection, worker, counts, budgets)
    first_table = FirstTable(config, connection, preparation.store, preparation.reports)
    return await FirstBundle(preparation, first_table).choose()


class FirstBundle:
    """Tries the available bundles, newest first, until one runs and has a table."""

    def __init__(self, preparation: Preparation, first_table: FirstTable) -> None:
        self._preparation, self._first_table = preparation, first_table
        self._config, self._connection, self._store = preparation.config, preparation.connection, preparation.store

    async def choose(self) -> Updater:
        """The updater of the first bundle that runs: given, newest released, or last used. Raises SscError."""
        given = self._config.bundle
        if given is None:
            await self._preparation.recover()
        present = open_bundle(given, self._store.trusted) if given else self._last_used()
        with contextlib.suppress(FormatError):
            self._preparation.releases.kept()  # its number holds even if the file of numbers is damaged
        records = await self._first_table.records()
        released = None if given else await self._released(present, records)
        earlier = [] if given else self._store.earlier()
        bundles = list({bundle.digest: bundle for bundle in (released, present, *earlier) if bundle}.values())
        if not bundles:
            why = (
                "no --broker was given"
                if self._connection is None
                else self._connection.trouble or self._connection.held or f"{self._connection.url} gave none"
            )
            raise LinkError(f"no bundle on this device yet ({why}); start the server, or give --bundle")
        engine: Engine | None = None
        for bundle in bundles:
            try:
                engine = await self._preparation.prepare(bundle, engine)
                tables = await self._first_table.choose(bundle, records)
                break
            except SscError as exc:
                await self._preparation.reject(exc, bundle)
                if bundle is bundles[-1]:
                    raise
        assert engine is not None
        try:
            self._preparation.adopt(engine.bundle)
        except OSError as exc:
            _LOG.warning("cannot record which bundle runs: %s", exc)
        return Updater(self._preparation, tables, engine)

    def _last_used(self) -> Bundle | None:
        """The bundle this device ran last; if it is damaged, the server is asked, if there is one."""
        try:
            return self._store.current()
        except FormatError as exc:
            if self._preparation.server is None:
                raise
            _LOG.warning("%s", exc)
            return None

    async def _released(self, present: Bundle | None, records: list[tuple[str, bytes]]) -> Bundle | None:
        """The newest release, fetched to the disk; with a bundle to fall back on no failure is fatal."""
        connection, target = self._preparation.server, self._config.target
        if connection is None:
            return None
        try:
            record = await self._first_release(connection, 0.0 if present else _FIRST_RELEASE_S)
            if record is None and present is None:
                raise UsageError(f"--target {target}: the server has released nothing for it")
            if record is None:
                return None
            release = self._preparation.open_release(record).for_device(self._config.device)
            if self._preparation.trials.refusal(release.manifest) is not None:
                _LOG.warning("generation %d is not tried again", release.generation)
                return None
            blocks = partial(self._first_table.blocks_needed, records=records)
            return (await self._preparation.fetch(connection, release, present, blocks)).bundle
        except SscError as exc:
            if present is None:
                raise
            if isinstance(exc, WaitsForBudget):  # it is checked again as soon as the device runs
                return None
            await self._preparation.reject(exc)
            return None

    async def _first_release(self, connection: Transport, patience_s: float) -> bytes | None:
        """The release for this target; a server that is just starting may not have published one yet."""
        deadline = time.monotonic() + patience_s
        while True:
            await self._store.pin_first(connection)
            record = await connection.value(subjects.RELEASES, self._config.target)
            if record is not None or time.monotonic() >= deadline:
                return record
            await asyncio.sleep(0.25)
