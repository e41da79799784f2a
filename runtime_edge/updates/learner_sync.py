"""`--learn` in the device loop: a learner for the table in use, saved to disk and the broker every minute."""

from __future__ import annotations

import asyncio
import logging

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import FormatError, TableError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.learnt import MAX_LEARNT_BYTES, Learnt
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.policy.online_learner import OnlineLearner
from runtime_edge.transport.protocol import Transport

_LOG = logging.getLogger(__name__)
_PERIOD_S = 60.0


class LearnerSync:
    """Saves what a device learns, in `<state>/learnt.json` and under `learnt/<device>` on the broker.

    A new table starts with nothing learnt: what was learnt on the previous one has been reported, and may be merged
    into the next (`ssc splitter merge`).
    """

    def __init__(self, config: DeviceConfig, connection: Transport | None) -> None:
        self._config, self._connection = config, connection
        self._path = config.state / "learnt.json"
        self._learner: OnlineLearner | None = None
        self._saved = 0

    def learner_for(self, table: SplitterTable) -> OnlineLearner | None:
        """A learner for this table, with what an earlier run left; None without `--learn`."""
        if self._config.learn:
            self._save()
            try:
                self._learner = OnlineLearner(table, self._config.device, self._read())
            except TableError as exc:
                _LOG.info("%s; learning restarts", exc)
                self._learner = OnlineLearner(table, self._config.device)
            self._saved = 0
        return self._learner

    async def share_forever(self) -> None:
        """Save and report every minute, until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.share()

    async def share(self) -> None:
        """Save and report what is new, best effort."""
        record = self._save()
        if record is not None and self._connection is not None and self._connection.connected:
            await self._connection.put(subjects.LEARNT, record.to_json())

    def _save(self) -> Learnt | None:
        """The record, if there is something new in it."""
        if self._learner is None or self._learner.updates == self._saved:
            return None
        self._saved = self._learner.updates
        record = self._learner.record()
        try:
            write_checked(self._path, record.to_json())
        except OSError as exc:
            _LOG.warning("%s: cannot be written (%s)", self._path, exc.strerror or exc)
        return record

    def _read(self) -> Learnt | None:
        try:
            data = read_checked(self._path, MAX_LEARNT_BYTES, TableError)
            return None if data is None else Learnt.from_json(data, str(self._path))
        except FormatError as exc:
            _LOG.warning("%s; learning restarts", exc)
            return None
