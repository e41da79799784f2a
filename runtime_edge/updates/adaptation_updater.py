"""Which adaptation a device uses: the newest one on the broker that fits what runs, or the last one used.

An adapted engine is made and self-tested in a thread of its own while the present one runs on, and takes over between
two windows. One that fails is refused and reported, and nothing changes.
"""

from __future__ import annotations

import asyncio
import logging

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import SscError
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.inference.engine import Engine
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.engine_setup import adapted_engine
from runtime_edge.updates.received_records import ReceivedRecords, RecordKind
from runtime_edge.updates.updater import Updater

_LOG = logging.getLogger(__name__)


class AdaptationUpdater:
    """Takes adaptations as they come, and again when their bundle takes over."""

    def __init__(self, config: DeviceConfig, connection: Transport | None, updater: Updater) -> None:
        self._config, self._updater, self._reports = config, updater, updater.reports
        store = BundleStore(config.state, config.trusted)
        kind: RecordKind[Adaptation] = RecordKind("adaptation", Adaptation.from_json)
        self._records = ReceivedRecords(kind, config, connection, store, updater.reports)
        self._latest: tuple[Adaptation, bytes, str] | None = None
        """The latest adaptation, its record and its source."""

    async def follow(self) -> None:
        """Use the last adaptation again, then watch for later ones."""
        try:
            record = self._records.kept()
            if record is not None:
                source = str(self._records.path)
                await self._came(self._records.open_kept(record, source), record, source)
        except SscError as exc:
            await self._reports.failed("adaptation_refused", exc)
        self._updater.taken_over = self._again
        await self._records.watch(self._came)

    async def _again(self) -> None:
        """Use the latest adaptation if it is for the bundle that takes over."""
        if self._latest is not None:
            adaptation, record, source = self._latest
            try:
                if await self._came(adaptation, record, source):
                    self._records.keep(record)
            except SscError as exc:
                await self._reports.failed("adaptation_refused", exc)

    async def _came(self, adaptation: Adaptation, record: bytes, source: str) -> bool:
        self._latest = adaptation, record, source
        before = self._updater.engine
        if adaptation.generation != before.generation:
            _LOG.info("%s is for generation %d, and %d runs", source, adaptation.generation, before.generation)
            return False
        if before.adaptation == adaptation or (before.adaptation is None and not adaptation.layers):
            return False

        async def adapted(engine: Engine) -> Engine:
            adaptation.check_fits(engine.bundle.manifest, engine.prefix.variant, source)
            wanted = adaptation if adaptation.layers else None
            return await asyncio.to_thread(adapted_engine, engine, self._config, wanted)

        await self._updater.exchange(adapted)
        await self._reports.report("adapted", digest=adaptation.digest)
        return True
