"""Chooses the bundle and the table that a device starts with, and prepares later ones for a swap between windows.

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

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import BackendError, FormatError, LinkError, OlderBundle, OldRecord, SscError, UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.records.release import Release, ReleasedBundle, decode_release
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.isolated_self_test import self_test_in_child
from runtime_edge.inference.variants import choose_variant, runtime_options
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.bundle_store import BundleStore, FetchedBundle, check_same_ends
from runtime_edge.updates.engine_setup import engine_for
from runtime_edge.updates.signed_records import RecordKeeper
from runtime_edge.updates.table_updater import TableUpdater
from runtime_edge.updates.trial import Refusal, Trial
from runtime_edge.updates.update_reports import MAX_REASON, UpdateReports

_LOG = logging.getLogger(__name__)
_FIRST_RELEASE_S = 10.0
_RECHECK_S = 30.0
_REPORTED_FAILURES = 8


class Updater:
    """Watches releases and tables, prepares and self-tests them between two windows, and hands them over when asked."""

    def __init__(self, config: DeviceConfig, connection: Transport | None, worker: Worker, counts: LoopCounts) -> None:
        self._config, self._connection, self._worker = config, connection, worker
        self._store = BundleStore(config.state, config.trusted)
        self._trials = self._store.trials
        self.reports = UpdateReports(config, connection, counts, self._trials)
        self._releases = RecordKeeper("release", config, self._store, self.reports)
        self._tables = TableUpdater(config, connection, self._store, self.reports)
        self._engine: Engine
        self._next_engine: Engine | None = None
        self._on_ready: Callable[[], None] = lambda: None
        self._installing = asyncio.Lock()
        self._running: Bundle
        """The bundle of the last window; `_engine` may be a newer one that is not in use yet."""
        self._trial: Trial | None = None
        self._proving: asyncio.Task[None] | None = None
        self._rechecked = float("-inf")
        self._failures: dict[str, Refusal] = {}
        """By digest, reported to the server: updates that failed here, and bundles that this device refuses."""

    async def first(self) -> tuple[Engine, SplitterTable]:
        """The bundle and table to start with: given, newest released, or last used. Raises SscError."""
        given = self._config.bundle
        if given is None:
            await self._recover()
        present = open_bundle(given, self._store.trusted) if given else self._last_used()
        with contextlib.suppress(FormatError):
            self._releases.kept()  # its number holds even if the file of numbers is damaged
        released = None if given else await self._released(present)
        earlier = [] if given else self._store.earlier()
        bundles = list({bundle.digest: bundle for bundle in (released, present, *earlier) if bundle}.values())
        if not bundles:
            why = (
                "no --broker was given"
                if self._connection is None
                else self._connection.trouble or f"{self._connection.url} gave none"
            )
            raise LinkError(f"no bundle on this device yet ({why}); start the server, or give --bundle")
        records = await self._tables.records()
        for bundle in bundles:
            try:
                self._engine = await self._prepare(bundle)
                table = await self._tables.first(bundle, records)
                break
            except SscError as exc:
                await self._reject(exc, bundle)
                if bundle is bundles[-1]:
                    raise
        try:
            self._adopt(self._engine.bundle)
        except OSError as exc:
            _LOG.warning("which bundle runs cannot be written down: %s", exc)
        self._start_trial(self._engine.bundle)
        return self._engine, table

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
                self._ended(self._engine.bundle)
            raise
        self._ended(self._engine.bundle)

    async def recheck(self) -> None:
        """Look for a newer release, because the server has retired the generation in use."""
        now = time.monotonic()
        if self._config.bundle is not None or now - self._rechecked < _RECHECK_S or self._server is None:
            return
        self._rechecked = now
        with contextlib.suppress(LinkError):
            record = await self._server.value(subjects.RELEASES, self._config.target)
            if record is not None:
                await self._on_release(self._config.target, record)

    def status(self) -> dict[str, Any]:
        """For the report: which bundle runs, whether it still has to prove itself, what could not be run here."""
        return {
            "bundle": self._running.digest,
            "on_trial": self._trial is not None,
            "update_failures": [msgspec.to_builtins(failure) for failure in self._failures.values()],
        }

    @property
    def _server(self) -> Transport | None:
        """The connection, while it is up."""
        return self._connection if self._connection is not None and self._connection.connected else None

    async def _recover(self) -> None:
        """Refuse bundles that crashed earlier runs, and report them to the server."""
        refused = self._trials.known().refused[-_REPORTED_FAILURES:]
        self._failures = {refusal.manifest: refusal for refusal in refused}
        for refusal in self._store.recover():
            _LOG.warning("%s", refusal.reason)
            self._failures[refusal.manifest] = refusal
            await self.reports.report(
                refusal.event, generation=refusal.generation, digest=refusal.manifest, reason=refusal.reason
            )

    def _last_used(self) -> Bundle | None:
        """What this device ran last; when that is damaged the server is asked, if there is one."""
        try:
            return self._store.current()
        except FormatError as exc:
            if self._server is None:
                raise
            _LOG.warning("%s", exc)
            return None

    async def _released(self, present: Bundle | None) -> Bundle | None:
        """The newest release, brought onto the disk; with a bundle to fall back on no failure is fatal."""
        connection, target = self._server, self._config.target
        if connection is None:
            return None
        try:
            record = await self._first_release(connection, 0.0 if present else _FIRST_RELEASE_S)
            if record is None and present is None:
                raise UsageError(f"--target {target}: the server has released nothing for it")
            if record is None:
                return None
            release = self._open_release(record).for_device(self._config.device)
            if self._trials.refusal(release.manifest) is not None:
                _LOG.warning("generation %d is not tried again", release.generation)
                return None
            return (await self._fetch(connection, release, present)).bundle
        except SscError as exc:
            if present is None:
                raise
            await self._reject(exc)
            return None

    def _open_release(self, data: bytes) -> Release:
        """The release that came, unless it is an old one. Raises FormatError."""
        target, source = self._config.target, f"release for {self._config.target}"
        record = self._releases.open(data, target, source)
        release = decode_release(record.body, source)
        self._releases.keep(data)
        # Nobody has signed what an earlier version says of going back.
        return release if record.number or self._store.trusted is None else release.forward_only()

    async def _fetch(self, connection: Transport, release: ReleasedBundle, present: Bundle | None) -> FetchedBundle:
        """Raises what `BundleStore.fetch` raises, noted as a failure of that release."""
        try:
            fetched = await self._store.fetch(connection, release, self._config.variant, self._config.target, present)
        except OlderBundle:
            raise  # the device's own choice says nothing of the release
        except FormatError as exc:
            self._remember(release.generation, release.manifest, "update_failed", exc)
            raise
        if fetched.fetched_bytes:
            await self.reports.report(
                "fetched", generation=release.generation, digest=release.manifest, bytes=fetched.fetched_bytes,
                assets=fetched.assets, patches=fetched.patches,
            )  # fmt: skip
        return fetched

    async def _first_release(self, connection: Transport, patience_s: float) -> bytes | None:
        """What is released for this target; a server that is just starting may not have got so far."""
        deadline = time.monotonic() + patience_s
        while True:
            await self._store.pin_first(connection)
            record = await connection.value(subjects.RELEASES, self._config.target)
            if record is not None or time.monotonic() >= deadline:
                return record
            await asyncio.sleep(0.25)

    async def _prepare(self, bundle: Bundle) -> Engine:
        """Self-test, load and self-test between two windows; the bundle in use keeps running meanwhile."""
        if self._store.holds(bundle) and self._trials.known().proven != bundle.digest:
            await self._test_first(bundle)
        return await self._worker.run(self._load, bundle)

    async def _test_first(self, bundle: Bundle) -> None:
        """Self-test a bundle that has not proven itself where it cannot harm this process."""
        config = self._config
        variant = choose_variant(bundle.manifest, config.variant, config.target)
        options = runtime_options(bundle.manifest, config.target, config.threads)
        try:
            await self_test_in_child(bundle, variant, options, config.max_memory_mb)
        except BackendError as exc:
            self._trials.refuse(bundle, str(exc))
            raise

    def _load(self, bundle: Bundle) -> Engine:
        config, own = self._config, self._store.holds(bundle)
        if own:
            with contextlib.suppress(OSError):  # a full disk is no reason to stand still
                self._trials.begin(bundle)
        try:
            engine = engine_for(bundle, config, getattr(self, "_engine", None))
            engine.ready()
        except BackendError as exc:
            if own:
                self._trials.refuse(bundle, str(exc))
            raise
        return engine

    def _adopt(self, bundle: Bundle) -> None:
        if self._store.holds(bundle):
            self._store.adopt(bundle)

    def _start_trial(self, bundle: Bundle) -> None:
        """The bundle is in use from now on; put it on trial unless it is proven."""
        self._running = bundle
        self._failures.pop(bundle.digest, None)
        proven = self._trials.known().proven == bundle.digest or not self._store.holds(bundle)
        self._trial = None if proven else Trial(bundle, self._config.trial_s)

    async def _prove(self, bundle: Bundle) -> None:
        try:
            await asyncio.to_thread(self._trials.prove, bundle)
        except OSError as exc:
            _LOG.warning("generation %d runs, but that cannot be kept: %s", bundle.manifest.info.generation, exc)
        await self.reports.report("proven", generation=bundle.manifest.info.generation, digest=bundle.digest)

    def _ended(self, bundle: Bundle) -> None:
        """Clear the bundle's pending start: the run ended cleanly, or failed for another reason."""
        if self._store.holds(bundle):
            with contextlib.suppress(OSError):
                self._trials.ended(bundle)

    async def _on_release(self, key: str, record: bytes) -> None:
        async with self._installing:
            bundle: Bundle | None = None
            try:
                assert self._connection is not None
                await self._store.pin_first(self._connection)
                told = self._open_release(record)
                release, present = told.for_device(self._config.device), self._engine.bundle
                if release.manifest == present.digest:
                    return
                if self._trials.refusal(release.manifest) is not None:
                    if present.manifest.info.generation < told.oldest:
                        await self.reports.report(
                            "retired", generation=present.manifest.info.generation, oldest=told.oldest
                        )
                    return
                bundle = (await self._fetch(self._connection, release, present)).bundle
                check_same_ends(present, bundle)
                engine = await self._prepare(bundle)
                table = self._tables.needed_for(bundle)
                self._adopt(bundle)
            except LinkError:
                raise  # the watch tries again
            except (SscError, OSError) as exc:
                await self._reject(exc, bundle)
                return
            self._engine = self._next_engine = engine
            self._tables.turn_to(bundle, table)
            self._on_ready()
        await self.reports.report("generation", generation=bundle.manifest.info.generation, digest=bundle.digest)

    async def _reject(self, exc: Exception, bundle: Bundle | None = None) -> None:
        """Record and report a release that this device does not take; it keeps what it runs."""
        details: dict[str, object] = {}
        if bundle is not None:
            details = {"generation": bundle.manifest.info.generation, "digest": bundle.digest}
            self._remember(bundle.manifest.info.generation, bundle.digest, "update_failed", exc)
            self._ended(bundle)
        refused = isinstance(exc, OlderBundle | OldRecord)
        await self.reports.failed("update_refused" if refused else "update_failed", exc, **details)

    def _remember(self, generation: int, digest: str, event: str, exc: Exception) -> None:
        self._failures.pop(digest, None)
        self._failures[digest] = Refusal(
            generation=generation, manifest=digest, event=event, reason=str(exc)[:MAX_REASON]
        )
        while len(self._failures) > _REPORTED_FAILURES:
            self._failures.pop(next(iter(self._failures)))
