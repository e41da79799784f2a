"""Detects another device with this device's name. Both devices check, so the owners of both learn of it."""

from __future__ import annotations

import logging

from runtime_edge.base.text import printable
from runtime_edge.errors import FormatError, LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.report import decode_report
from runtime_edge.transport.protocol import Transport

_LOG = logging.getLogger(__name__)
_EVERY = 4
"""Reports between two checks: a check reads as much as a report, and links are thin."""


class NamesakeWatch:
    """Reads the report under this device's name on the broker just before replacing it.

    Args:
        connection: the connection to the broker.
        device: the name.
        boot: the token of this run (`subjects.new_boot`), which its reports carry.
    """

    def __init__(self, connection: Transport, device: str, boot: str) -> None:
        self._connection, self._device, self._boot = connection, device, boot
        self._reports = 0
        self._suspect = b""
        self.found = ""
        """A message about another device of this name; empty if none is known."""

    async def look(self) -> None:
        """Call before each report. The first report replaces what an earlier run of this device has left."""
        self._reports += 1
        if not self._suspect and self._reports % _EVERY != 2:
            return
        try:
            data = await self._connection.value(subjects.PRESENCE, self._device) or b""
            other = decode_report(data, "report")
        except (LinkError, FormatError) as exc:
            _LOG.debug("namesakes cannot be looked for: %s", exc)
            return
        if other.get("boot") == self._boot:
            self._suspect, self.found = b"", ""
        elif not self._suspect:
            self._suspect = data  # or from an earlier run, if this one's report has not arrived
        elif data != self._suspect:
            self._suspect = b""
            self._tell(str(other.get("target")), str(other.get("boot")))

    def _tell(self, target: str, boot: str) -> None:
        known = self.found
        self.found = (
            f"another device reports under the name {self._device} (target {printable(target, 64)}, run "
            f"{printable(boot, 64)}): what both send and are given is mixed up; give each a --device of its own"
        )
        if not known:
            _LOG.warning("%s", self.found)
