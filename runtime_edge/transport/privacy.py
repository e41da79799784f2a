"""The privacy floor: what gives away too much never leaves the device, whoever asks for it.

That is everything earlier than `--min-cut`, and what gives away more words than `--max-word-recognition` according to
the bundle's audit. The floor is enforced in two places: the splitter never chooses such an action, whatever a table or
exploration says, and frames that an earlier run spooled without this floor are dropped before anything is sent. With
`local` as the floor no frame leaves at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from runtime_edge.base.checked_files import read_checked, write_checked
from runtime_edge.errors import FormatError, FrameError
from runtime_edge.formats.encoder.privacy_info import Payload
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


def drop_below_floor(
    spool: Spool,
    state: Path,
    manifest: Manifest,
    min_cut: str | None,
    most_words: float | None = None,
    forbidden: Collection[Payload] = (),
) -> int:
    """Drop spooled frames of runs with another floor that this one would not ship; returns how many.

    `<state>/privacy-floor` holds the floor under which the spooled frames were made. If that differs, frames of other
    generations are dropped as well, because their cuts may have differed. `forbidden` is what `most_words`
    (`max_word_recognition`) forbids. Raises BundleError or SpoolError.
    """
    floor, note = floor_index(manifest, min_cut), state / "privacy-floor"
    kept = (min_cut or "") if most_words is None else f"{min_cut or ''} words {most_words:g}"
    try:
        before = (read_checked(note, _MAX_NOTE_BYTES) or b"").decode()
    except (FormatError, UnicodeDecodeError):
        before = "damaged"
    if before == kept:
        return 0
    has_floor = floor > 0 or most_words is not None
    dropped = spool.discard(lambda frame: has_floor and not _may_leave(frame, manifest.info, floor, forbidden))
    with contextlib.suppress(OSError):  # on a full disk this run keeps its floor, and the next one checks again
        write_checked(note, kept.encode())
    return dropped


def _may_leave(frame: bytes, info: BundleInfo, floor: int, forbidden: Collection[Payload]) -> bool:
    try:
        headers = [header for header, _ in decode_frame(frame)]
    except FrameError:
        return False
    return all(
        header.generation == info.generation
        and floor <= header.cut < len(info.cuts)
        and (info.cuts[header.cut].name, header.width) not in forbidden
        for header in headers
    )
