"""Finds the frame that crashed the process among those that were merely in progress.

A frame that the broker has delivered several times without an answer is completed alone; meanwhile a file names it. A
process that finds such a file when it starts knows what crashed the previous one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from runtime_edge.base.checked_files import read_checked, remove_checked, write_checked
from runtime_edge.errors import FormatError

_LOG = logging.getLogger(__name__)
DELIVERIES = 3
"""Deliveries after which a frame is completed alone; each of the earlier ones may have ended in a crash."""
_MAX_BYTES = 64


class Suspects:
    """One file for each partition, so that processes sharing a state directory have separate files."""

    def __init__(self, directory: Path, partitions: Iterable[int]) -> None:
        self._directory = directory
        self._crashed_on: dict[int, int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for partition in partitions:
            try:
                data = read_checked(self._file(partition), _MAX_BYTES)
                if data is not None:
                    self._crashed_on[partition] = int(data)
            except (FormatError, ValueError) as exc:
                _LOG.warning("%s; no frame is blamed for the crash", exc)

    def crashed_on(self, partition: int, sequence: int) -> bool:
        """Whether an earlier process crashed while completing this frame alone."""
        return self._crashed_on.get(partition) == sequence

    @contextlib.contextmanager
    def retrying_alone(self, partition: int, sequence: int) -> Iterator[None]:
        """Inside the block, a crash is attributed to this frame."""
        try:
            write_checked(self._file(partition), str(sequence).encode())
        except OSError as exc:
            _LOG.warning(
                "%s: %s; if the server crashes now, it cannot tell which frame is to blame", self._file(partition), exc
            )
        try:
            yield
        finally:
            remove_checked(self._file(partition))

    def forget(self, partition: int) -> None:
        """Forget the frame: it is a dead letter now."""
        self._crashed_on.pop(partition, None)
        remove_checked(self._file(partition))

    def _file(self, partition: int) -> Path:
        return self._directory / f"{partition}.trying"
