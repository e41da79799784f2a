"""Fetches a released bundle, tests it, loads it, and records bundles that cannot run here."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import BackendError, FormatError, OlderBundle, OldRecord
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.release import Release, ReleasedBundle, decode_release
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.isolated_self_test import self_test_in_child
from runtime_edge.inference.variants import choose_variant, runtime_options
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.budgets import Budgets
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.asset_fetch import Allow, Wanted
from runtime_edge.updates.bundle_store import BundleStore, FetchedBundle
from runtime_edge.updates.engine_setup import engine_for
from runtime_edge.updates.received_records import RecordKeeper
from runtime_edge.updates.trial import Refusal
from runtime_edge.updates.update_reports import MAX_REASON, UpdateReports

_LOG = logging.getLogger(__name__)
_REPORTED_FAILURES = 8


class Preparation:
    """What choosing the first bundle and taking later ones have in common.

    Args:
        config: the device's settings.
        connection: the connection to the broker, if there is one.
        worker: where bundles are loaded, between two windows.
        counts: counts errors.
        budgets: limit what may be fetched.
    """

    def __init__(
        self,
        config: DeviceConfig,
        connection: Transport | None,
        worker: Worker,
        counts: LoopCounts,
        budgets: Budgets | None = None,
    ) -> None:
        self.config, self.connection, self._worker = config, connection, worker
        self.budgets = budgets or Budgets(config, connection)
        self.store = BundleStore(config.state, config.trusted)
        self.trials = self.store.trials
        self.reports = UpdateReports(config, connection, counts, self.trials)
        self.releases = RecordKeeper("release", config, self.store, self.reports)
        self.failures: dict[str, Refusal] = {}
        """Reported to the server, by digest: updates that failed here, and bundles that this device refuses."""

    @property
    def server(self) -> Transport | None:
        """The connection, if it is up."""
        return self.connection if self.connection is not None and self.connection.connected else None

    async def recover(self) -> None:
        """Refuse bundles that crashed earlier runs, and report them to the server."""
        refused = self.trials.known().refused[-_REPORTED_FAILURES:]
        self.failures = {refusal.manifest: refusal for refusal in refused}
        for refusal in self.store.recover():
            _LOG.warning("%s", refusal.reason)
            self.failures[refusal.manifest] = refusal
            await self.reports.report(
                refusal.event, generation=refusal.generation, digest=refusal.manifest, reason=refusal.reason
            )

    def open_release(self, data: bytes) -> Release:
        """Read a release, unless it is an old one. Raises FormatError."""
        target, source = self.config.target, f"release for {self.config.target}"
        record = self.releases.open(data, target, source)
        release = decode_release(record.body, source)
        self.releases.keep(data)
        # Nobody has signed what an earlier version says about going back.
        return release if record.number or self.store.trusted is None else release.forward_only()

    async def fetch(
        self,
        connection: Transport,
        release: ReleasedBundle,
        present: Bundle | None,
        blocks: Callable[[Manifest], int],
    ) -> FetchedBundle:
        """Fetch the first blocks of a release. Raises what `BundleStore.fetch` raises, after noting it as a failure."""
        config = self.config
        try:
            wanted = Wanted(blocks, self._allow(needed=present is None))
            fetched = await self.store.fetch(connection, release, config.variant, config.target, present, wanted)
        except OlderBundle:
            raise  # the device's own choice says nothing about the release
        except FormatError as exc:
            self._remember(release.generation, release.manifest, "update_failed", exc)
            raise
        await self._fetched(release.generation, release.manifest, fetched)
        return fetched

    async def deepen(self, connection: Transport, engine: Engine, blocks: int) -> Engine:
        """The same bundle with more of its first blocks. Raises what `BundleStore.complete` and `prepare` raise."""
        bundle, variant = engine.bundle, engine.prefix.variant
        wanted = Wanted(lambda manifest: blocks, self._allow())
        fetched = await self.store.complete(connection, bundle, variant, wanted)
        await self._fetched(bundle.manifest.info.generation, bundle.digest, fetched)
        await self._test_first(fetched.bundle)
        return await self._worker.run(self._load, fetched.bundle, engine, engine.adaptation)

    def _allow(self, needed: bool = False) -> Allow | None:
        return partial(self.budgets.may_update, needed=needed) if self.budgets.limits_updates else None

    async def _fetched(self, generation: int, digest: str, fetched: FetchedBundle) -> None:
        if fetched.fetched_bytes:
            self.budgets.save()
            await self.reports.report(
                "fetched", generation=generation, digest=digest, bytes=fetched.fetched_bytes,
                assets=fetched.assets, patches=fetched.patches,
            )  # fmt: skip

    async def prepare(self, bundle: Bundle, previous: Engine | None) -> Engine:
        """Self-test a bundle apart, then load and self-test it between two windows; the one in use runs on meanwhile.

        What has not changed since `previous` stays loaded. Raises what `Engine` raises.
        """
        if self.store.holds(bundle) and self.trials.known().proven != bundle.digest:
            await self._test_first(bundle)
        return await self._worker.run(self._load, bundle, previous)

    def adopt(self, bundle: Bundle) -> None:
        """Record that a bundle runs from now on. Raises OSError."""
        if self.store.holds(bundle):
            self.store.adopt(bundle)

    def ended(self, bundle: Bundle) -> None:
        """Clear the bundle's pending start: the run ended cleanly, or failed for another reason."""
        if self.store.holds(bundle):
            with contextlib.suppress(OSError):
                self.trials.ended(bundle)

    async def reject(self, exc: Exception, bundle: Bundle | None = None) -> None:
        """Record and report a release that this device does not accept; it keeps what it runs."""
        details: dict[str, object] = {}
        if bundle is not None:
            details = {"generation": bundle.manifest.info.generation, "digest": bundle.digest}
            self._remember(bundle.manifest.info.generation, bundle.digest, "update_failed", exc)
            self.ended(bundle)
        refused = isinstance(exc, OlderBundle | OldRecord)
        await self.reports.failed("update_refused" if refused else "update_failed", exc, **details)

    async def _test_first(self, bundle: Bundle) -> None:
        """Self-test an unproven bundle where it cannot harm this process."""
        config = self.config
        variant = choose_variant(bundle.manifest, config.variant, config.target)
        options = runtime_options(bundle.manifest, config.target, config.threads)
        try:
            await self_test_in_child(bundle, variant, options, config.max_memory_mb)
        except BackendError as exc:
            self.trials.refuse(bundle, str(exc))
            raise

    def _load(self, bundle: Bundle, previous: Engine | None, adaptation: Adaptation | None = None) -> Engine:
        config, own = self.config, self.store.holds(bundle)
        if own:
            with contextlib.suppress(OSError):  # a full disk must not stop the device
                self.trials.begin(bundle)
        try:
            engine = engine_for(bundle, config, previous, adaptation)
            engine.ready()
        except BackendError as exc:
            if own:
                self.trials.refuse(bundle, str(exc))
            raise
        return engine

    def _remember(self, generation: int, digest: str, event: str, exc: Exception) -> None:
        self.failures.pop(digest, None)
        self.failures[digest] = Refusal(
            generation=generation, manifest=digest, event=event, reason=str(exc)[:MAX_REASON]
        )
        while len(self.failures) > _REPORTED_FAILURES:
            self.failures.pop(next(iter(self.failures)))
