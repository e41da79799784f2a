"""Prepares later bundles and tables for a swap between windows.

An engine and a table are handed over only if they fit each other and the device's privacy floor, so the swap cannot
fail. An update that does not fit is refused, counted and reported, and the device keeps what it runs. A new bundle is
on trial (`runtime_edge.updates.trial`) until it has run for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec

from runtime_edge.errors import BackendError, LinkError, SscError, WaitsForBudget
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


async def _nothing() -> None:
    """Do nothing."""


class WaitingUpdate(NamedTuple):
    """An update that is larger than what is left of a budget."""

    generation: int
    manifest: str
    reason: str
    until: float
    """When it may be fetched, seconds since the epoch; infinite: it never fits."""

    def is_too_early(self, manifest: str, now: float) -> bool:
        """Whether this very bundle is waiting, and `now` is still too early."""
        return manifest == self.manifest and now < self.until

    def told(self) -> dict[str, Any]:
        """Its fields in the report."""
        until = None if math.isinf(self.until) else round(self.until)
        return {"generation": self.generation, "manifest": self.manifest, "until": until, "reason": self.reason}


class Updater:
    """Watches releases and tables, prepares and self-tests them between two windows, and hands them over when asked."""

    def __init__(self, preparation: Preparation, tables: TableUpdater, engine: Engine) -> None:
        """Begins with the engine that runs, and the tables for it."""
        self._preparation, self._tables, self.reports = preparation, tables, preparation.reports
        self._config, self._connection = preparation.config, preparation.connection
        self._store, self._trials = preparation.store, preparation.trials
        self.engine = engine
        """The engine in use, or handed over next."""
        self._running = engine.bundle
        """The bundle of the last window; `engine` may be for a newer one that is not in use yet."""
        self._trial: Trial | None = None
        self._next_engine: Engine | None = None
        self._on_ready: Callable[[], None] = lambda: None
        self.taken_over: Callable[[], Awaitable[None]] = _nothing
        """Called once another bundle is ready to take over."""
        self._installing = asyncio.Lock()
        self._proving: asyncio.Task[None] | None = None
        self._rechecked = float("-inf")
        self._waiting: WaitingUpdate | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._start_trial(engine.bundle)

    @property
    def table(self) -> SplitterTable:
        """The table in use, or handed over next."""
        return self._tables.table

    async def follow(self, on_ready: Callable[[], None]) -> None:
        """Watch for tables and, unless a bundle was given, for releases; `on_ready` is called when one can be taken."""
        self._on_ready = on_ready
        await self._tables.follow(on_ready, self._deepen)
        if self._connection is not None and self._config.bundle is None:
            await self._connection.watch(subjects.RELEASES, [self._config.target], self._on_release)

    def take_updates(self) -> tuple[Engine | None, SplitterTable | None]:
        """The engine and table to switch to now, or None. A new engine with other cuts comes with a table for them."""
        ready = self._next_engine, self._tables.take()
        self._next_engine = None
        if ready[0] is not None and ready[0].bundle is not self._running:
            self._start_trial(ready[0].bundle)
        return ready

    async def exchange(self, build: Callable[[Engine], Awaitable[Engine]]) -> None:
        """Let an engine that is made of the same bundle take over. Raises what `build` raises."""
        async with self._installing:
            self.engine = self._next_engine = await build(self.engine)
        self._on_ready()

    def window_ran(self, bundle: Bundle) -> None:
        """Note which bundle ran a window: enough of them prove the one on trial."""
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
        """For the report: which bundle runs, whether it still has to prove itself, and what could not be run here."""
        return {
            "bundle": self._running.digest,
            "on_trial": self._trial is not None,
            "adaptation": None if self.engine.adaptation is None else self.engine.adaptation.digest,
            "update_waits": None if self._waiting is None else self._waiting.told(),
            "update_failures": [msgspec.to_builtins(failure) for failure in self._preparation.failures.values()],
        }

    def _start_trial(self, bundle: Bundle) -> None:
        """Note that a bundle is in use from now on; put it on trial unless it is proven."""
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
                    self._wait_no_longer()
                    return
                if self._waiting is not None and self._waiting.is_too_early(release.manifest, time.time()):
                    return
                if self._trials.refusal(release.manifest) is not None:
                    if present.manifest.info.generation < told.oldest:
                        await self.reports.report(
                            "retired", generation=present.manifest.info.generation, oldest=told.oldest
                        )
                    return
                blocks = self._tables.blocks_needed
                bundle = (await self._preparation.fetch(self._connection, release, present, blocks)).bundle
                check_same_ends(present, bundle)
                engine = await self._preparation.prepare(bundle, self.engine)
                table = self._tables.needed_for(bundle)
                self._preparation.adopt(bundle)
            except LinkError:
                raise  # the watch tries again
            except WaitsForBudget as exc:
                self._wait(WaitingUpdate(release.generation, release.manifest, str(exc), exc.until))
                self._retry(exc.until, partial(self._on_release, key, record))
                return
            except (SscError, OSError) as exc:
                self._wait_no_longer()
                await self._preparation.reject(exc, bundle)
                return
            self._wait_no_longer()
            self.engine = self._next_engine = engine
            self._tables.turn_to(bundle, table)
            self._on_ready()
        await self.reports.report("generation", generation=bundle.manifest.info.generation, digest=bundle.digest)
        await self.taken_over()

    async def _deepen(self, blocks: int) -> None:
        """Get more of the first blocks ready, of the bundle that runs or will run next. Raises SscError."""
        async with self._installing:
            engine = self.engine
            if engine.bundle.blocks_there(engine.prefix.variant) >= blocks:
                return
            if self._connection is None:
                raise LinkError(f"{engine.bundle.path}: the first {blocks} blocks are needed, but cannot be fetched")
            try:
                self.engine = self._next_engine = await self._preparation.deepen(self._connection, engine, blocks)
            except WaitsForBudget as exc:
                number, digest = engine.generation, engine.bundle.digest
                self._wait(WaitingUpdate(number, digest, f"deeper blocks for a table: {exc}", exc.until))
                self._retry(exc.until, self._tables.take_early)
                raise
            self._wait_no_longer()

    def _wait(self, waiting: WaitingUpdate) -> None:
        """Note that an update waits for a budget; log it once."""
        before, self._waiting = self._waiting, waiting
        if before is None or (before.manifest, before.generation) != (waiting.manifest, waiting.generation):
            _LOG.warning("generation %d: %s", waiting.generation, waiting.reason)
            self._trials.note("update_waits", generation=waiting.generation, reason=waiting.reason)

    def _wait_no_longer(self) -> None:
        self._waiting = None

    def _retry(self, until: float, update: Callable[[], Awaitable[None]]) -> None:
        """Try a waiting update again once its time has come; a later one takes its place."""
        if self._retrying is not None and self._retrying is not asyncio.current_task():
            self._retrying.cancel()
        self._retrying = None if math.isinf(until) else asyncio.create_task(self._try_later(until, update))

    async def _try_later(self, until: float, update: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(max(0.0, until - time.time()))
        while True:
            try:
                return await update()
            except SscError as exc:  # the link failed
                _LOG.info("an update that waited: %s", exc)
            await asyncio.sleep(_RECHECK_S)
