"""Prepares later bundles and tables for a swap between windows.

An engine and a table are handed over only when they fit each other and the device's privacy floor, so the swap cannot
fail. An update that does not fit is refused, counted and reported, and the device keeps what it runs. A new bundle is
on trial (`runtime_edge.updates.trial`) until it has run for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from runtime_edge.errors import BackendError, LinkError, SscError
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.inference.engine import Engine
from runtime_edge.updates.bundle_store import check_same_ends
from runtime_edge.updates.preparation import Preparation
from runtime_edge.updates.table_updater import TableUpdater
from runtime_edge.updates.trial import Trial

_LOG = logging.getLogger(__name__)
_RECHECK_S = 30.0


class Updater:
    """Watches releases and tables, prepares and self-tests them between two windows, and hands them over when asked."""

    def __init__(self, preparation: Preparation, tables: TableUpdater, engine: Engine) -> None:
        """Begins with the engine that runs, and the tables for it."""
        self._preparation, self._tables, self.reports = preparation, tables, preparation.reports
        self._config, self._connection = preparation.config, preparation.connection
        self._store, self._trials = preparation.store, preparation.trials
        self.engine = engine
        """In use, or handed over next."""
        self._running = engine.bundle
        """The bundle of the last window; `engine` may be of a newer one that is not in use yet."""
        self._trial: Trial | None = None
        self._next_engine: Engine | None = None
        self._on_ready: Callable[[], None] = lambda: None
        self._installing = asyncio.Lock()
        self._proving: asyncio.Task[None] | None = None
        self._rechecked = float("-inf")
        self._start_trial(engine.bundle)

    @property
    def table(self) -> SplitterTable:
        """In use, or handed over next."""
        return self._tables.table

    async def follow(self, on_ready: Callable[[], None]) -> None:
        """Watch for tables and, unless a bundle was given, for releases; `on_ready` is called when there is one."""
        self._on_ready = on_ready
        await self._tables.follow(on_ready)
        if self._connection is not None and self._config.bundle is None:
            await self._connection.watch(subjects.RELEASES, [self._config.target], self._on_release)

    def take_updates(self) -> tuple[Engine | None, SplitterTable | None]:
        """The engine and table to switch to now, or None. A new engine with other cuts comes with a table for them."""
        ready = self._next_engine, self._tables.take()
        self._next_engine = None
        if ready[0] is not None:
            self._start_trial(ready[0].bundle)
        return ready

    def window_ran(self, bundle: Bundle) -> None:
        """Tell of each window which bundle ran it: enough of them prove the one that is on trial."""
        if self._trial is not None and self._trial.bundle is bundle and self._trial.window_ran():
            self._trial = None
            self._proving = asyncio.create_task(self._prove(bundle))

    @contextlib.contextmanager
    def clean_exit(self) -> Iterator[None]:
        """Wraps the run: unless it ends with an error of the bundle, the start does not count as failed."""
        try:
            yield
        except (SscError, OSError, asyncio.CancelledError) as exc:
            if not isinstance(exc, BackendError):
                self._preparation.ended(self.engine.bundle)
            raise
        self._preparation.ended(self.engine.bundle)

    async def recheck(self) -> None:
        """Look for a newer release, because the server has retired the generation in use."""
        now = time.monotonic()
        if self._config.bundle is not None or now - self._rechecked < _RECHECK_S or self._preparation.server is None:
            return
        self._rechecked = now
        with contextlib.suppress(LinkError):
            record = await self._preparation.server.value(subjects.RELEASES, self._config.target)
            if record is not None:
                await self._on_release(self._config.target, record)

    def status(self) -> dict[str, Any]:
        """For the report: which bundle runs, whether it still has to prove itself, what could not be run here."""
        return {
            "bundle": self._running.digest,
            "on_trial": self._trial is not None,
            "update_failures": [msgspec.to_builtins(failure) for failure in self._preparation.failures.values()],
        }

    def _start_trial(self, bundle: Bundle) -> None:
        """The bundle is in use from now on; put it on trial unless it is proven."""
        self._running = bundle
        self._preparation.failures.pop(bundle.digest, None)
        proven = self._trials.known().proven == bundle.digest or not self._store.holds(bundle)
        self._trial = None if proven else Trial(bundle, self._config.trial_s)

    async def _prove(self, bundle: Bundle) -> None:
        try:
            await asyncio.to_thread(self._trials.prove, bundle)
        except OSError as exc:
            _LOG.warning("generation %d runs, but this cannot be recorded: %s", bundle.manifest.info.generation, exc)
        await self.reports.report("proven", generation=bundle.manifest.info.generation, digest=bundle.digest)

    async def _on_release(self, key: str, record: bytes) -> None:
        async with self._installing:
            bundle: Bundle | None = None
            try:
                assert self._connection is not None
                await self._store.pin_first(self._connection)
                told = self._preparation.open_release(record)
                release, present = told.for_device(self._config.device), self.engine.bundle
                if release.manifest == present.digest:
                    return
                if self._trials.refusal(release.manifest) is not None:
                    if present.manifest.info.generation < told.oldest:
                        await self.reports.report(
                            "retired", generation=present.manifest.info.generation, oldest=told.oldest
                        )
                    return
                bundle = (await self._preparation.fetch(self._connection, release, present)).bundle
                check_same_ends(present, bundle)
                engine = await self._preparation.prepare(bundle, self.engine)
                table = self._tables.needed_for(bundle)
                self._preparation.adopt(bundle)
            except LinkError:
                raise  # the watch tries again
            except (SscError, OSError) as exc:
                await self._preparation.reject(exc, bundle)
                return
            self.engine = self._next_engine = engine
            self._tables.turn_to(bundle, table)
            self._on_ready()
        await self.reports.report("generation", generation=bundle.manifest.info.generation, digest=bundle.digest)
