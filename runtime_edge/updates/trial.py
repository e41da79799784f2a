"""Which bundles a device may run: one is on trial until it has proven itself, and refused if it crashes the device.

A bundle that passes its self-test can still bring the process down (a runtime that segfaults, memory that runs out),
and then the process cannot report it. So each start of an unproven bundle is recorded before it is loaded, and the
record is cleared when the run ends cleanly. After `FAILED_STARTS` starts without a clean end, the device rolls back to
the proven bundle and refuses the other one for good.

<state>/bundles.json      the record, written whole
<state>/updates.jsonl     what happened, newest last, bounded
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.base.files import read_bounded, write_atomic
from runtime_edge.errors import BundleError
from runtime_edge.formats import strict
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.manifest import Digest
from runtime_edge.formats.strict import Strict

_LOG = logging.getLogger(__name__)
FAILED_STARTS = 2
PROVEN_WINDOWS = 20
"""Windows that a bundle must run, besides `DeviceConfig.trial_s` seconds, before it counts as proven."""
_MAX_RECORD_BYTES = 64 << 10
_MAX_LOG_BYTES = 64 << 10
_KEPT_REFUSALS = 16
_MAX_REASON = 500
_CHECKED = '{"crc32": "'
"""How a line of the log begins; the checksum covers the rest of the line."""

Generation = Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]


class UnprovenStart(Strict, frozen=True):
    """Starts of an unproven bundle that have not ended cleanly."""

    generation: Generation
    manifest: Digest
    count: Annotated[int, Meta(ge=1, le=1000)]


class Refusal(Strict, frozen=True):
    """A bundle that this device does not accept again."""

    generation: Generation
    manifest: Digest
    event: str
    reason: str


class BundleRecord(Strict, frozen=True):
    """The contents of `bundles.json`."""

    current: Digest | None = None
    """The bundle that runs, or ran last."""
    proven: Digest | None = None
    """The bundle to go back to."""
    before: Digest | None = None
    """The bundle proven before that one: a server's rollback finds it on the disk."""
    starts: list[UnprovenStart] = msgspec.field(default_factory=list)
    refused: list[Refusal] = msgspec.field(default_factory=list)

    @property
    def wanted(self) -> set[str]:
        """Digests of the bundles worth keeping on disk."""
        return {digest for digest in (self.current, self.proven, self.before) if digest is not None}


class Trial:
    """Counts what an unproven bundle has done in this run."""

    def __init__(self, bundle: Bundle, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.bundle = bundle
        self._clock = clock
        self._until = clock() + seconds
        self._windows = PROVEN_WINDOWS

    def window_ran(self) -> bool:
        """Count a window that the bundle has run; returns whether the trial is passed."""
        self._windows -= 1
        return self._windows <= 0 and self._clock() >= self._until


class Trials:
    """The record of one state directory. Every change is on disk when the call returns; any thread may call."""

    def __init__(self, state: Path) -> None:
        self._path, self._log = state / "bundles.json", state / "updates.jsonl"
        self._lock = threading.Lock()

    def record(self) -> BundleRecord:
        """The record; empty on a fresh device. Raises BundleError."""
        fetched = ", and the server's release is fetched"
        data = read_checked(self._path, _MAX_RECORD_BYTES, BundleError, fetched)
        if data is None:
            return BundleRecord()
        fix = f"; remove the file{fetched}"
        return strict.decode(data, BundleRecord, str(self._path), _MAX_RECORD_BYTES, BundleError, fix=fix)

    def known(self) -> BundleRecord:
        """The record, or an empty one if it is damaged: it holds nothing worth stopping for."""
        try:
            return self.record()
        except BundleError:
            return BundleRecord()

    def refusal(self, manifest: str) -> Refusal | None:
        """Why a bundle is refused here, or None if it is not."""
        return next((item for item in self.known().refused if item.manifest == manifest), None)

    def begin(self, bundle: Bundle) -> None:
        """Call before a bundle is loaded: from now on it may crash the process."""

        def change(record: BundleRecord) -> BundleRecord:
            if bundle.digest == record.proven:
                return record
            count = 1 + sum(item.count for item in record.starts if item.manifest == bundle.digest)
            start = UnprovenStart(generation=bundle.manifest.info.generation, manifest=bundle.digest, count=count)
            return replace(record, starts=[*_without(record.starts, bundle.digest), start])

        self._change(change)

    def adopt(self, bundle: Bundle) -> BundleRecord:
        """Make a loaded and self-tested bundle the current one."""
        return self._change(lambda record: replace(record, current=bundle.digest))

    def prove(self, bundle: Bundle) -> BundleRecord:
        """Mark a bundle as proven: the one to roll back to."""

        def change(record: BundleRecord) -> BundleRecord:
            before = record.before if record.proven == bundle.digest else record.proven
            starts = _without(record.starts, bundle.digest)
            return replace(record, proven=bundle.digest, before=before, starts=starts)

        return self._change(change)

    def ended(self, bundle: Bundle) -> None:
        """The run ended cleanly, or the bundle could not be used for a temporary reason: clear its recorded starts."""
        self._change(lambda record: replace(record, starts=_without(record.starts, bundle.digest)))

    def refuse(self, bundle: Bundle, reason: str) -> None:
        """Refuse a bundle that does not work on this device, provided there is another one to run."""
        refusal = _refusal(bundle.manifest.info.generation, bundle.digest, "update_failed", reason)
        self._change(lambda record: _refused(record, refusal))

    def forgive(self, manifest: str) -> None:
        """Lift a refusal, at an operator's request."""

        def change(record: BundleRecord) -> BundleRecord:
            refused = [item for item in record.refused if item.manifest != manifest]
            return replace(record, refused=refused, starts=_without(record.starts, manifest))

        self._change(change)

    def recover(self) -> list[Refusal]:
        """Call once when a device starts: refuses a bundle that has crashed it too often, and goes back."""
        before = self.known()
        for loop in before.starts:
            if loop.count >= FAILED_STARTS:
                reason = f"the device died {loop.count} times within the first windows of generation {loop.generation}"
                refusal = _refusal(loop.generation, loop.manifest, "rolled_back", reason)
                self._change(lambda record, refusal=refusal: _refused(record, refusal))  # type: ignore[misc]
        return [item for item in self.known().refused if item not in before.refused]

    def note(self, event: str, **details: Any) -> None:
        """Append to the log; a full disk must not stop the device."""
        text = json.dumps({"time": round(time.time(), 3), "event": event, **details})
        line = f'{_CHECKED}{zlib.crc32(text.encode()):08x}", {text[1:]}\n'
        try:
            if self._log.exists() and self._log.stat().st_size + len(line) > _MAX_LOG_BYTES:
                kept = self._log.read_bytes()[-_MAX_LOG_BYTES // 2 :]
                write_atomic(self._log, kept[kept.find(b"\n") + 1 :])
            with self._log.open("a") as file:
                file.write(line)
        except OSError:
            return

    def _change(self, change: Callable[[BundleRecord], BundleRecord]) -> BundleRecord:
        with self._lock:
            before = self.known()
            after = change(before)
            if after != before:
                write_checked(self._path, msgspec.json.format(msgspec.json.encode(after), indent=2) + b"\n")
            return after


class UpdateLog(NamedTuple):
    """The contents of `updates.jsonl`."""

    events: list[dict[str, Any]]
    """The last events, oldest first: time (s since the epoch), event, and its details."""
    damaged_lines: int = 0
    """Number of damaged lines in the whole file; they are left out."""


def update_log(state: Path, newest: int = 20) -> UpdateLog:
    """The last events in a state directory's log of updates."""
    path = state / "updates.jsonl"
    if not path.exists():
        return UpdateLog([])
    found = []
    lines = read_bounded(path, 2 * _MAX_LOG_BYTES).splitlines()
    for line in lines:
        with contextlib.suppress(*strict.UNREADABLE):
            found.append(msgspec.json.decode(_checked(line), type=dict[str, Any]))
    if len(found) < len(lines):
        _LOG.warning("%s: %d damaged lines are left out", path, len(lines) - len(found))
    return UpdateLog(found[-newest:], len(lines) - len(found))


def _checked(line: bytes) -> bytes:
    """A line of the log without its checksum; empty if the checksum is wrong. Earlier versions wrote none."""
    if not line.startswith(_CHECKED.encode()):
        return line if line.startswith(b'{"time"') else b""
    checksum, _, rest = line.removeprefix(_CHECKED.encode()).partition(b'", ')
    return b"{" + rest if checksum == b"%08x" % zlib.crc32(b"{" + rest) else b""


def _without(starts: list[UnprovenStart], manifest: str) -> list[UnprovenStart]:
    return [item for item in starts if item.manifest != manifest]


def _refusal(generation: int, manifest: str, event: str, reason: str) -> Refusal:
    return Refusal(generation=generation, manifest=manifest, event=event, reason=reason[:_MAX_REASON])


def _refused(record: BundleRecord, refusal: Refusal) -> BundleRecord:
    """The record without that bundle, if there is another one that may work."""
    digest = refusal.manifest
    other = record.current if record.current != digest else record.proven
    if other in (None, digest) or record.proven == digest:
        return record
    refused = [*(item for item in record.refused if item.manifest != digest), refusal]
    return replace(record, current=other, starts=_without(record.starts, digest), refused=refused[-_KEPT_REFUSALS:])
