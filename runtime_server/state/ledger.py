"""The ledger: which windows of which device have been counted.

It extends exactly-once beyond the broker's deduplication window.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.base.checked_files import checksum_path, read_checked, write_checked
from runtime_edge.base.files import locked, read_bounded
from runtime_edge.formats import subjects
from runtime_edge.formats.strict import decode

_LOG = logging.getLogger(__name__)
_MAX_CHAINS = 20_000
_MAX_BYTES = 256 << 20
LOCK_PATIENCE_S = 5.0
"""A process that has just been killed still holds its files for a moment."""
_JOURNAL = "streamsplit.journal/2"
"""The first line. Earlier versions' journals have none, and no checksums of their lines."""
_FIX = " to start counting anew"
_TAKEN = "another server runs on this state directory; stop it, or give another --state"
WindowId = tuple[str, str, int]
"""Device, boot and window index."""
_Runs = list[Annotated[list[int], Meta(min_length=2, max_length=2)]]


class Ledger:
    """Window indices seen for each boot of each device, as sorted runs; small because indices are mostly dense.

    May be used from several threads.
    """

    def __init__(self) -> None:
        self._chains: OrderedDict[str, list[list[int]]] = OrderedDict()
        self._lock = threading.RLock()

    def add(self, device: str, boot: str, index: int) -> bool:
        """Note a window; False when it was noted before."""
        return self.add_all([(device, boot, index)])[0]

    def add_all(self, windows: Sequence[WindowId]) -> list[bool]:
        """Record windows, in order; for each, False when it was recorded before."""
        with self._lock:
            return [self._add(f"{device}.{boot}", index) for device, boot, index in windows]

    def holds(self, device: str, boot: str, index: int) -> bool:
        """Whether a window was noted."""
        with self._lock:
            runs = self._chains.get(f"{device}.{boot}", [])
            place = bisect.bisect_right(runs, [index, 1 << 62])
            return place > 0 and index <= runs[place - 1][1]

    def counts(self) -> dict[str, int]:
        """Distinct windows seen by device, over all its boots."""
        found: dict[str, int] = {}
        with self._lock:
            for chain, runs in self._chains.items():
                device = chain.rpartition(".")[0]
                found[device] = found.get(device, 0) + sum(last - first + 1 for first, last in runs)
        return found

    def to_bytes(self) -> bytes:
        """JSON."""
        with self._lock:
            return msgspec.json.encode(self._chains)

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "ledger") -> Ledger:
        """Raises FormatError, naming `source`, for anything else than what `to_bytes` wrote."""
        ledger = cls()
        ledger._chains = OrderedDict(decode(data, dict[str, _Runs], source, _MAX_BYTES, fix="; remove it" + _FIX))
        return ledger

    def snapshot(self) -> Ledger:
        """What is noted now, in memory: it does not change with this one."""
        return Ledger.from_bytes(self.to_bytes())

    def _add(self, chain: str, index: int) -> bool:
        runs = self._chains.setdefault(chain, [])
        self._chains.move_to_end(chain)
        if len(self._chains) > _MAX_CHAINS:
            self._chains.popitem(last=False)
        place = bisect.bisect_right(runs, [index, 1 << 62])
        before = runs[place - 1] if place else None
        if before is not None and index <= before[1]:
            return False
        after = runs[place] if place < len(runs) else None
        touches_before = before is not None and before[1] + 1 == index
        touches_after = after is not None and after[0] == index + 1
        if touches_before and touches_after:
            assert before is not None
            before[1] = runs.pop(place)[1]
        elif touches_before:
            assert before is not None
            before[1] = index
        elif touches_after:
            assert after is not None
            after[0] = index
        else:
            runs.insert(place, [index, index])
        return True


class DurableLedger(Ledger):
    """A ledger in a file, and beside it in `<file>.journal` what was noted since the last `save`.

    A window is in the journal before `add_all` returns, so the death of the process forgets none. A power cut, or
    damage to the journal, may take the last seconds; those windows then count as not yet seen. Raises FormatError for
    a damaged file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        journal = path.with_name(path.name + ".journal")
        known = checksum_path(path).exists()  # not where an earlier version has written: it began no journal
        data = read_checked(path, _MAX_BYTES, fix=_FIX)
        if data is not None:
            self._chains = Ledger.from_bytes(data, str(path))._chains
        lines = _journal_lines(journal)
        self._begun = lines[0] == _JOURNAL
        added, damaged = self._replay(lines[self._begun :], checked=known or self._begun)
        damaged = damaged or (known and not self._begun)
        if damaged:
            _LOG.error("%s: damaged; windows of the last seconds may be counted twice if they are sent again", journal)
        self._journal = journal.open("ab", buffering=0)
        self._saved = not added
        if damaged or (added and not self._begun):
            self._save()
        elif not self._begun:
            self._begin_journal()

    def add_all(self, windows: Sequence[WindowId]) -> list[bool]:
        """Record windows, in order; for each, False when it was recorded before."""
        with self._lock:
            new = super().add_all(windows)
            names = [".".join(map(str, window)) for window, is_new in zip(windows, new, strict=True) if is_new]
            lines = [f"{name}~{_checksum(name)}\n" for name in names]
            if lines:
                self._saved = False
                try:
                    self._journal.write("".join(lines).encode())
                except OSError as exc:
                    _LOG.warning("%s: %s; the next save has it", self._journal.name, exc)
            return new

    def save(self) -> None:
        """Write the whole ledger, if it has changed, and empty the journal. Raises OSError; then the journal stays."""
        with self._lock:
            if not self._saved:
                self._save()

    def close(self) -> None:
        """Save and release the files; where they cannot be saved, the journal has what is new."""
        with self._lock:
            try:
                self.save()
            except OSError as exc:
                _LOG.error("%s cannot be saved: %s", self._path, exc)
            self._journal.close()

    def _save(self) -> None:
        write_checked(self._path, self.to_bytes())
        self._saved = True
        self._begin_journal()

    def _begin_journal(self) -> None:
        """Leave the first line alone in the journal: one without it has lost what it held."""
        first = f"{_JOURNAL}\n".encode()
        if self._begun:
            self._journal.truncate(len(first))
        else:
            self._journal.truncate(0)
            self._journal.write(first)
            self._begun = True

    def _replay(self, lines: list[str], checked: bool) -> tuple[int, bool]:
        """Take in the lines of a journal, of which the last is empty; how many were good, and whether one was not."""
        good = 0
        for line in lines[:-1]:
            name, _, checksum = line.partition("~")
            chain, _, index = name.rpartition(".")
            sound = checksum == _checksum(name) if checked else not checksum
            if sound and chain and index.isascii() and index.isdecimal():
                self._add(chain, int(index))
                good += 1
        return good, good != len(lines) - 1 or bool(lines and lines[-1])


def _journal_lines(path: Path) -> list[str]:
    """What stands between the line ends; the last is empty unless it was cut off."""
    return read_bounded(path, _MAX_BYTES).decode(errors="replace").split("\n") if path.exists() else [""]


def _checksum(name: str) -> str:
    return f"{zlib.crc32(name.encode()):08x}"


class PartitionedLedger:
    """One durable ledger for each of some partitions, in files of its own: another process may have the others.

    `directory/<partition>.json` and its journal belong to one process at a time. Which process that is may change
    from start to start, so that another number of ranks goes on counting where the former left off.
    """

    def __init__(
        self,
        directory: Path,
        partitions: Iterable[int] = range(subjects.PARTITIONS),
        lock_patience_s: float = LOCK_PATIENCE_S,
    ) -> None:
        """Raises UsageError when another process has one of the partitions, FormatError for a damaged file."""
        directory.mkdir(parents=True, exist_ok=True)
        self._ledgers: dict[int, DurableLedger] = {}
        with contextlib.ExitStack() as held:
            for partition in partitions:
                held.enter_context(locked(directory / f"{partition}.lock", _TAKEN, lock_patience_s))
                self._ledgers[partition] = ledger = DurableLedger(directory / f"{partition}.json")
                held.callback(ledger.close)
            self._held = held.pop_all()

    def add(self, device: str, boot: str, index: int) -> bool:
        """Note a window; False when it was noted before. Raises KeyError for a device of a partition not held."""
        return self.add_all([(device, boot, index)])[0]

    def add_all(self, windows: Sequence[WindowId]) -> list[bool]:
        """Record windows, in order; for each, False when it was recorded before. Raises KeyError like `add`."""
        places: dict[int, list[int]] = {}
        for place, (device, _, _) in enumerate(windows):
            places.setdefault(subjects.partition(device), []).append(place)
        new = [False] * len(windows)
        for partition, own in places.items():
            for place, is_new in zip(own, self._ledgers[partition].add_all([windows[i] for i in own]), strict=True):
                new[place] = is_new
        return new

    def counts(self) -> dict[str, int]:
        """Distinct windows seen by device, over all its boots."""
        return {device: count for ledger in self._ledgers.values() for device, count in ledger.counts().items()}

    def snapshot(self) -> Ledger:
        """What is noted now of all the partitions, in memory: it does not change with these."""
        whole = Ledger()
        for ledger in self._ledgers.values():
            whole._chains.update(ledger.snapshot()._chains)
        return whole

    def save(self) -> None:
        """Write every ledger whole and empty its journal. Raises OSError; then journals stay."""
        for ledger in self._ledgers.values():
            ledger.save()

    def close(self) -> None:
        """Save and let other processes have the partitions."""
        self._held.close()
