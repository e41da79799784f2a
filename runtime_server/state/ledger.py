"""The ledger: which windows of which device have been counted.

With it, a window is counted exactly once even beyond the broker's deduplication window.
"""

from __future__ import annotations

import contextlib
import logging
import re
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
from runtime_server.state.device_windows import DeviceWindows, Runs

_LOG = logging.getLogger(__name__)
MAX_DEVICES = 20_000
MAX_RUNS = 1 << 18
"""With this many, a file stays below 40 MB, and memory at 50 MB."""
_MAX_BYTES = 256 << 20
LOCK_PATIENCE_S = 5.0
"""A process that has just been killed still holds its files for a moment."""
_JOURNAL = "streamsplit.journal/2"
"""The first line. Journals of earlier versions have none, and no checksums of their lines."""
_FIX = " to start counting over"
_TAKEN = "another server runs on this state directory; stop it, or give another --state"
WindowId = tuple[str, str, int]
"""Device, boot and window index."""
_JOURNAL_LINE = re.compile(r"(?P<device>.+)\.(?P<boot>[^.]+)\.(?P<index>[0-9]{1,18})")
_Runs = list[Annotated[list[int], Meta(min_length=2, max_length=2)]]


class Ledger:
    """The windows seen of each device (`DeviceWindows`). May be used from several threads.

    If all devices together exceed `MAX_RUNS`, the device with the most runs forgets half. Beyond `MAX_DEVICES`, which
    only an open broker admits, the least recently active device is forgotten.
    """

    def __init__(self) -> None:
        self._devices: OrderedDict[str, DeviceWindows] = OrderedDict()
        self._runs = 0
        self._lock = threading.RLock()

    def add(self, device: str, boot: str, index: int) -> bool:
        """Record a window; False if it was recorded before."""
        return self.add_all([(device, boot, index)])[0]

    def add_all(self, windows: Sequence[WindowId]) -> list[bool]:
        """Record windows, in order; for each, False if it was recorded before."""
        with self._lock:
            return [self._add(*window) for window in windows]

    def holds(self, device: str, boot: str, index: int) -> bool:
        """Whether a window was recorded."""
        with self._lock:
            return device in self._devices and self._devices[device].holds(boot, index)

    def counts(self) -> dict[str, int]:
        """Number of distinct windows seen of each device, over all its boots."""
        with self._lock:
            return {device: own.count for device, own in self._devices.items()}

    def to_bytes(self) -> bytes:
        """The ledger as JSON."""
        with self._lock:
            return msgspec.json.encode(self._chains())

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "ledger") -> Ledger:
        """Read what `to_bytes` wrote. Raises FormatError, naming `source`, for anything else."""
        ledger = cls()
        ledger.restore(data, source)
        return ledger

    def restore(self, data: bytes, source: str = "ledger") -> None:
        """Add what `to_bytes` wrote of another ledger. Raises FormatError, naming `source`, for anything else."""
        with self._lock:
            for chain, runs in decode(data, dict[str, _Runs], source, _MAX_BYTES, fix="; remove it" + _FIX).items():
                device, _, boot = chain.rpartition(".")
                own = self._windows(device)
                before = own.runs
                own.restore(boot, runs)
                self._keep_bounds(own.runs - before)

    def snapshot(self) -> Ledger:
        """A copy in memory of what is recorded now; it does not change with this ledger."""
        return Ledger.from_bytes(self.to_bytes())

    def _chains(self) -> dict[str, Runs]:
        return {f"{device}.{boot}": runs for device, own in self._devices.items() for boot, runs in own.chains()}

    def _add(self, device: str, boot: str, index: int) -> bool:
        own = self._windows(device)
        before = own.runs
        new = own.add(boot, index)
        if own.runs != before:
            self._keep_bounds(own.runs - before)
        return new

    def _windows(self, device: str) -> DeviceWindows:
        own = self._devices.get(device)
        if own is None:
            own = self._devices[device] = DeviceWindows()
        else:
            self._devices.move_to_end(device)
        return own

    def _keep_bounds(self, more_runs: int) -> None:
        """Enforce the limits after a device has gained `more_runs` runs."""
        self._runs += more_runs
        if len(self._devices) > MAX_DEVICES:
            self._runs -= self._devices.popitem(last=False)[1].runs
        while self._runs > MAX_RUNS:
            most = max(self._devices.values(), key=lambda other: other.runs)
            self._runs -= most.runs - most.runs // 2
            most.forget(most.runs // 2)


class DurableLedger(Ledger):
    """A ledger in a file; `<file>.journal` beside it holds what was recorded since the last `save`.

    A window is in the journal before `add_all` returns, so a crash of the process loses none. A power cut or a damaged
    journal may lose the last seconds; those windows then count as not yet seen. Raises FormatError for a damaged file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        journal = path.with_name(path.name + ".journal")
        known = checksum_path(path).exists()  # False after an earlier version, whose journals had no first line
        data = read_checked(path, _MAX_BYTES, fix=_FIX)
        if data is not None:
            self.restore(data, str(path))
        lines = _journal_lines(journal)
        self._begun = lines[0] == _JOURNAL
        added, damaged = self._replay(lines[self._begun :], checked=known or self._begun)
        self.damaged_lines = max(damaged, int(known and not self._begun))
        """Damaged lines in the journal at the start; each is a window that may be counted twice. It is 1 if the first
        line is missing: how many others were lost with it is unknown."""
        if self.damaged_lines:
            _LOG.error(
                "%s: damaged in %d lines; their windows may be counted twice if they are sent again",
                *(journal, self.damaged_lines),
            )
        self._journal = journal.open("ab", buffering=0)
        self._saved = not added
        if self.damaged_lines or (added and not self._begun):
            self._save()
        elif not self._begun:
            self._begin_journal()

    def add_all(self, windows: Sequence[WindowId]) -> list[bool]:
        """Record windows, in order; for each, False if it was recorded before."""
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
        """Write the whole ledger if it has changed, and empty the journal. Raises OSError; then the journal stays."""
        with self._lock:
            if not self._saved:
                self._save()

    def close(self) -> None:
        """Save and release the files; if saving fails, the journal still has what is new."""
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
        """Reduce the journal to its first line; one without a first line has lost its contents."""
        first = f"{_JOURNAL}\n".encode()
        if self._begun:
            self._journal.truncate(len(first))
        else:
            self._journal.truncate(0)
            self._journal.write(first)
            self._begun = True

    def _replay(self, lines: list[str], checked: bool) -> tuple[int, int]:
        """Read the lines of a journal, the last of which is empty; returns how many were good and how many were bad."""
        good = 0
        for line in lines[:-1]:
            name, _, checksum = line.partition("~")
            matches = checksum == _checksum(name) if checked else not checksum
            if matches and (found := _JOURNAL_LINE.fullmatch(name)):
                self._add(found["device"], found["boot"], int(found["index"]))
                good += 1
        return good, len(lines) - bool(lines and not lines[-1]) - good


def _journal_lines(path: Path) -> list[str]:
    """The lines of a journal; the last one is empty unless it was cut off."""
    return read_bounded(path, _MAX_BYTES).decode(errors="replace").split("\n") if path.exists() else [""]


def _checksum(name: str) -> str:
    return f"{zlib.crc32(name.encode()):08x}"


class PartitionedLedger:
    """One durable ledger for each partition, in separate files, so that another process may hold other partitions.

    `directory/<partition>.json` and its journal belong to one process at a time. Which process that is may change from
    start to start, so a different number of ranks continues counting where the earlier one stopped.
    """

    def __init__(
        self,
        directory: Path,
        partitions: Iterable[int] = range(subjects.PARTITIONS),
        lock_patience_s: float = LOCK_PATIENCE_S,
    ) -> None:
        """Raises UsageError if another process has one of the partitions, FormatError for a damaged file."""
        directory.mkdir(parents=True, exist_ok=True)
        self._ledgers: dict[int, DurableLedger] = {}
        with contextlib.ExitStack() as held:
            for partition in partitions:
                held.enter_context(locked(directory / f"{partition}.lock", _TAKEN, lock_patience_s))
                self._ledgers[partition] = ledger = DurableLedger(directory / f"{partition}.json")
                held.callback(ledger.close)
            self._held = held.pop_all()

    def add(self, device: str, boot: str, index: int) -> bool:
        """Record a window; False if it was recorded before. Raises KeyError if its device's partition is not held."""
        return self.add_all([(device, boot, index)])[0]

    def add_all(self, windows: Sequence[WindowId]) -> list[bool]:
        """Record windows, in order; for each, False if it was recorded before. Raises KeyError like `add`."""
        places: dict[int, list[int]] = {}
        for place, (device, _, _) in enumerate(windows):
            places.setdefault(subjects.partition(device), []).append(place)
        new = [False] * len(windows)
        for partition, own in places.items():
            for place, is_new in zip(own, self._ledgers[partition].add_all([windows[i] for i in own]), strict=True):
                new[place] = is_new
        return new

    def holds(self, device: str, boot: str, index: int) -> bool:
        """Whether a window was recorded. Raises KeyError like `add`."""
        return self._ledgers[subjects.partition(device)].holds(device, boot, index)

    def counts(self) -> dict[str, int]:
        """Number of distinct windows seen of each device, over all its boots."""
        return {device: count for ledger in self._ledgers.values() for device, count in ledger.counts().items()}

    @property
    def damaged_lines(self) -> int:
        """Lines of journals that were damaged or missing at the start; see `DurableLedger`."""
        return sum(ledger.damaged_lines for ledger in self._ledgers.values())

    def snapshot(self) -> Ledger:
        """A copy in memory of what is recorded now in all the partitions; it does not change with these ledgers."""
        whole = Ledger()
        for ledger in self._ledgers.values():
            whole.restore(ledger.to_bytes())
        return whole

    def save(self) -> None:
        """Write every ledger in full and empty its journal. Raises OSError; then journals stay."""
        for ledger in self._ledgers.values():
            ledger.save()

    def close(self) -> None:
        """Save and release the partitions to other processes."""
        self._held.close()
