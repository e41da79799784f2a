"""The privacy floor (`--min-cut`): nothing earlier than this cut ever leaves the device, whoever asks for it.

It is enforced in two places: the splitter never chooses an earlier cut, whatever a table or exploration says, and
frames that an earlier run spooled without this floor are dropped before anything is sent. With `local` as the floor no
frame leaves at all.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.errors import FormatError, FrameError
from runtime_edge.formats.manifest import BundleInfo, Manifest
from runtime_edge.formats.records.table import LOCAL
from runtime_edge.formats.wire import decode_frame
from runtime_edge.transport.spool.spool import Spool

_MAX_NOTE_BYTES = 4096


def floor_index(manifest: Manifest, min_cut: str | None) -> int:
    """Index of the first cut that may leave the device; one past the last for `local`. Raises BundleError."""
    if min_cut is None:
        return 0
    return len(manifest.info.cuts) if min_cut == LOCAL else manifest.cut_named(min_cut).index


def drop_below_floor(spool: Spool, state: Path, manifest: Manifest, min_cut: str | None) -> int:
    """Drop spooled frames of runs with another floor that this one would not ship; returns how many.

    `<state>/privacy-floor` holds the floor under which the spooled frames were made. If that differs, frames of other
    generations are dropped as well, because their cuts may have differed. Raises BundleError or SpoolError.
    """
    floor, note = floor_index(manifest, min_cut), state / "privacy-floor"
    try:
        before = (read_checked(note, _MAX_NOTE_BYTES) or b"").decode()
    except (FormatError, UnicodeDecodeError):
        before = "damaged"
    if before == (min_cut or ""):
        return 0
    dropped = spool.discard(lambda frame: floor > 0 and not _may_leave(frame, manifest.info, floor))
    with contextlib.suppress(OSError):  # on a full disk this run keeps its floor, and the next one checks again
        write_checked(note, (min_cut or "").encode())
    return dropped


def _may_leave(frame: bytes, info: BundleInfo, floor: int) -> bool:
    try:
        headers = [header for header, _ in decode_frame(frame)]
    except FrameError:
        return False
    return all(header.generation == info.generation and header.cut >= floor for header in headers)
