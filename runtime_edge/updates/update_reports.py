"""Reports a device's updates: to its log, its count of errors and the server."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from runtime_edge.config import DeviceConfig
from runtime_edge.formats import subjects
from runtime_edge.formats.results import VERSION
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.trial import Trials

MAX_REASON = 500
"""The most characters of a reason that are reported."""
_LOG = logging.getLogger(__name__)


class UpdateReports:
    """Reports updates, all best effort: a failed report stops nothing."""

    def __init__(self, config: DeviceConfig, connection: Transport | None, counts: LoopCounts, trials: Trials) -> None:
        self._device, self._connection, self._counts, self._trials = config.device, connection, counts, trials

    async def report(self, event: str, **details: object) -> None:
        """Write to the device's log of updates and publish an event, which `decode_update_event` reads."""
        await asyncio.to_thread(self._trials.note, event, **details)
        if self._connection is not None:
            body = msgspec.json.encode({"event": event, "version": VERSION, "device": self._device, **details})
            await self._connection.publish(subjects.events(self._device), body)

    async def failed(self, event: str, exc: Exception, **details: object) -> None:
        """Count and report an update that was refused, with the reason."""
        self.count(event, exc)
        await self.report(event, **details, reason=str(exc)[:MAX_REASON])

    def count(self, event: str, exc: Exception) -> None:
        """Count an update that was refused."""
        self._counts.errors[type(exc).__name__] += 1
        _LOG.warning("%s: %s", event, exc)

    def numbers_damaged(self, exc: Exception) -> None:
        """Count and log that the numbers of accepted records are lost, so old records cannot be recognised."""
        self.count("numbers_damaged", exc)
        self._trials.note("numbers_damaged", reason=str(exc)[:MAX_REASON])
