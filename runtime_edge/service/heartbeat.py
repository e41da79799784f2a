"""Reports the device's status every few seconds, to the state directory, systemd and the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from runtime_edge.base.text import moment
from runtime_edge.errors import SpoolError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.report import VERSION
from runtime_edge.sd_notify import Notifier
from runtime_edge.service.metrics import MetricsServer
from runtime_edge.service.namesake import NamesakeWatch
from runtime_edge.service.status import STALE_S, DeviceStatus, acknowledged, write_status
from runtime_edge.transport.protocol import Transport

_LOG = logging.getLogger(__name__)
_PERIOD_S = 5.0
REPORT_S = 60.0
"""Seconds between two reports to the server if nothing has happened."""
_FIRST_REPORTS = 3


class ReportPace:
    """Decides which beats report to the server: each report costs as much as a frame, and mostly repeats the last one.

    Reported at once is what a rollout waits for: the first status of a run, those during a trial and in the minute
    after a change of generation, and those with a new error.
    """

    def __init__(self) -> None:
        self._reports, self._reported_at, self._changed_at = 0, -REPORT_S, -REPORT_S
        self._said: tuple[object, ...] = ()

    def is_due(self, status: DeviceStatus, now: float) -> bool:
        """Whether to report this status; `now` in seconds, monotonic. If true, the caller reports."""
        says = status.encoder.generation, status.report.get("errors"), status.namesake
        has_changed = bool(self._said) and says != self._said
        if has_changed and says[0] != self._said[0]:
            self._changed_at = now
        busy = status.encoder.on_trial or now - self._changed_at < REPORT_S
        due = has_changed or busy or self._reports < _FIRST_REPORTS or now - self._reported_at >= REPORT_S
        if due:
            self._reports, self._reported_at, self._said = self._reports + 1, now, says
        return due


class Heartbeat:
    """Reports the device's status periodically.

    Args:
        state: the device's state directory.
        make_status: makes a status, queued among the windows: if a window is stuck, no status comes, systemd gets no
            sign of life, and its watchdog restarts the device.
        connection: sends reports to the server, if there is one.
        notifier: reports to systemd.
        namesakes: checks before each report whether another device has reported under this name.
        metrics: serves the latest status on request.
    """

    def __init__(
        self,
        state: Path,
        make_status: Callable[[str | None], Awaitable[DeviceStatus]],
        connection: Transport | None,
        notifier: Notifier,
        metrics: MetricsServer | None = None,
        namesakes: NamesakeWatch | None = None,
    ) -> None:
        self._state, self._make_status, self._connection, self._notifier = state, make_status, connection, notifier
        self._period_s = min(_PERIOD_S, (notifier.watchdog_s or _PERIOD_S * 3) / 3)
        self._metrics, self._namesakes = metrics, namesakes
        self._pace = ReportPace()
        self._writing: asyncio.Future[None] | None = None

    async def beat_forever(self) -> None:
        """Report until cancelled."""
        while True:
            try:
                await self._beat()
            except SpoolError as exc:
                _LOG.warning("%s", exc)
                self._notifier.alive()  # a restart does not repair a disk
            await asyncio.sleep(self._period_s)

    async def last(self, reason: str) -> None:
        """Write the final status, with the reason for the end."""
        self._notifier.stopping()
        with contextlib.suppress(SpoolError):
            await self._write(await self._make_status(reason))

    async def _beat(self) -> None:
        status = await self._make_status(None)
        if self._metrics is not None:
            self._metrics.latest = status
        await self._write(status)
        self._notifier.status(sentence(status))
        if status.source_silent_s < STALE_S:  # a restart may bring back a microphone that has failed
            self._notifier.alive()
        if self._connection is None or not self._connection.connected:
            return
        if self._pace.is_due(status, time.monotonic()):
            if self._namesakes is not None:
                await self._namesakes.look()
            report = {"version": VERSION, **status.report}
            await self._connection.put(subjects.PRESENCE, msgspec.json.encode(report))

    async def _write(self, status: DeviceStatus) -> None:
        """Write statuses in their order, including one whose beat was cancelled meanwhile."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
        self._writing = asyncio.ensure_future(self._written(status))
        await asyncio.shield(self._writing)

    async def _written(self, status: DeviceStatus) -> None:
        try:
            # In a thread: a slow memory card must not delay replies.
            await asyncio.to_thread(write_status, self._state, status)
        except OSError as exc:
            _LOG.warning("%s: the status cannot be written (%s)", self._state, exc.strerror or exc)


def sentence(status: DeviceStatus) -> str:
    """The status as one line for `systemctl status`."""
    report, link = status.report, status.uplink
    held = status.traffic.held_until
    away = "no server" if not link.connected else "" if held is None else f"nothing is sent until {moment(held)}"
    sent = f"{acknowledged(report)} acknowledged, {report['windows_spooled']} spooled"
    return ", ".join(filter(None, [f"generation {status.encoder.generation}", f"cut {status.cut}", sent, away]))
