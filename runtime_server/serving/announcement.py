"""Publishes what devices need from a server that has just started: its key, and a table for each target."""

from __future__ import annotations

from runtime_edge.errors import FormatError
from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.formats.records.table import SplitterTable
from runtime_server.broker.hub import Hub
from runtime_server.serving.loading import Loaded


class Announcement:
    """Puts these on the broker; `replicas` brokers keep each message."""

    def __init__(self, hub: Hub, loaded: Loaded, replicas: int = 1) -> None:
        self._hub, self._loaded, self._replicas = hub, loaded, replicas

    async def announce(self) -> None:
        """Publish the key, and the bundle's table for each target without a usable one. Raises LinkError."""
        generations = self._loaded.generations
        bundle = (generations.get(self._loaded.rollout.base) or generations.newest).bundle
        await self._hub.put_signing_key(self._loaded.key.public)
        await self._hub.upgrade_records(self._loaded.key)
        for target in bundle.manifest.info.targets:
            if not self._usable(target, await self._hub.table(target), bundle):
                await self._hub.put_table(bundle.table(target), self._loaded.key)

    async def mend(self) -> None:
        """Create missing streams and buckets, and announce again. Raises LinkError."""
        await self._hub.create(self._replicas)
        await self.announce()

    def _usable(self, target: str, record: bytes | None, bundle: Bundle) -> bool:
        """Whether the table kept by the broker for a target is signed with this server's key and fits the bundle."""
        try:
            key = self._loaded.key.public
            opened = open_record(record or b"", "table", subjects.table_key(target), key, "table")
            table = SplitterTable.from_json(opened.body, "table")
            table.check_cuts([cut.name for cut in bundle.manifest.info.cuts])
        except FormatError:
            return False
        return True
