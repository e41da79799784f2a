"""Says every few seconds how the device is, to whoever wants to know: the state directory, systemd, the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from runtime_edge.errors import SpoolError
from runtime_edge.service.sd_notify import Notifier
from runtime_edge.service.status import STALE_S, Status, write_status
from runtime_edge.transport.connection import Link

_LOG = logging.getLogger(__name__)
_PERIOD_S = 5.0


class Heartbeat:
    """Takes the device's status again and again.

    Args:
        state: the device's state directory.
        take: makes a status. It must take its turn among the windows: when one is stuck no status comes, no sign of
            life reaches systemd, and its watchdog starts the device again.
        link: where the server hears the report, if there is one.
        notifier: systemd's side.
    """

    def __init__(
        self, state: Path, take: Callable[[str | None], Awaitable[Status]], link: Link | None, notifier: Notifier
    ) -> None:
        self._state, self._take, self._link, self._notifier = state, take, link, notifier
        self._period_s = min(_PERIOD_S, (notifier.watchdog_s or _PERIOD_S * 3) / 3)
        self.latest: Status | None = None

    async def beat_forever(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._beat()
            except SpoolError as exc:
                _LOG.warning("%s", exc)
                self._notifier.alive()  # starting again mends no disk
            await asyncio.sleep(self._period_s)

    async def last(self, reason: str) -> None:
        """The device ends, and can say why."""
        self._notifier.stopping()
        with contextlib.suppress(SpoolError):
            await self._write(await self._take(reason))

    async def _beat(self) -> None:
        status = self.latest = await self._take(None)
        await self._write(status)
        self._notifier.status(sentence(status))
        if status.source_silent_s < STALE_S:  # a microphone that has died may come back with a new start
            self._notifier.alive()
        if self._link is not None and self._link.connected:
            await self._link.put_presence(msgspec.json.encode(status.report))

    async def _write(self, status: Status) -> None:
        try:
            # In a thread: a card that takes its time must not hold up replies.
            await asyncio.to_thread(write_status, self._state, status)
        except OSError as exc:
            _LOG.warning("%s: the status cannot be written (%s)", self._state, exc.strerror or exc)


def sentence(status: Status) -> str:
    """One line for `systemctl status`."""
    report, link = status.report, status.uplink
    away = "" if link.connected else "no server"
    sent = f"{report['windows_acked']} acknowledged, {report['windows_spooled']} spooled"
    return ", ".join(filter(None, [f"generation {status.encoder.generation}", f"cut {status.cut}", sent, away]))
