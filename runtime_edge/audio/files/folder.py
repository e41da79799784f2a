"""Which files of a folder are recordings: the one rule for all commands."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime_edge.base.text import shown
from runtime_edge.errors import SourceError

_PLAIN = frozenset([".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf"])
AUDIO_SUFFIXES = _PLAIN | {".flac", ".ogg", ".oga", ".opus", ".mp3"}
_UNREAD_SUFFIXES = frozenset([".m4a", ".aac", ".wma", ".amr", ".ape", ".wv", ".mka", ".ac3", ".dsf"])
"""Suffixes of recordings that cannot be read: they are tried anyway, so that their loss is reported and counted."""
_HIDDEN_DIRECTORIES = frozenset(
    (
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "lost+found",
        "lost.dir",
        "#recycle",
        "@recycle",
        "#snapshot",
        "@eadir",
        "files_trashbin",
        "network trash folder",
        "temporary items",
        "__macosx",
    )
)
_UNFINISHED = frozenset(
    [".part", ".partial", ".tmp", ".temp", ".incomplete", ".download", ".crdownload", ".opdownload", ".filepart"]
)
"""Marks of unfinished files: before a file's suffix, or at the end of a directory's name."""
_LOG = logging.getLogger(__name__)


def audio_files(directory: Path) -> list[Path]:
    """All recordings below `directory`, known by their suffix, sorted by path.

    Left out are names that begin with a dot or a tilde, the trash folders of common systems, unfinished downloads
    (`a.part.wav`), and everything below such a directory; links to directories are not followed.

    Raises:
        SourceError: there are no recordings.
    """
    found = sorted(recordings_below(directory), key=lambda path: os.fsencode(path.as_posix()))
    if not found:
        kinds = ", ".join(sorted(AUDIO_SUFFIXES))
        raise SourceError(f"{shown(directory)}: no audio file in this directory (looked for {kinds} at any depth)")
    return found


def is_recording(path: Path) -> bool:
    """Whether a path, judging by its name, is a file that its owner may mean as a recording.

    A broken link counts too: it is tried, so that the loss is reported and counted.
    """
    known = path.suffix.lower() in AUDIO_SUFFIXES | _UNREAD_SUFFIXES
    return known and not is_hidden(path.name) and (path.is_file() or (path.is_symlink() and not path.exists()))


def is_hidden(name: str) -> bool:
    """Whether a file or directory of this name was hidden by its owner or their system, or is unfinished."""
    parts = Path(name.lower()).suffixes
    if name.startswith((".", "~")) or name.lower() in _HIDDEN_DIRECTORIES:
        return True
    return not _UNFINISHED.isdisjoint(parts[-2:])


def recordings_below(directory: Path, tell: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """All recordings below `directory` in no particular order, perhaps none; `tell` is called for a directory that
    cannot be listed [default: `unreadable`].
    """
    for folder, folders, names in os.walk(directory, onerror=tell or unreadable):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from filter(is_recording, (Path(folder, name) for name in names))


def unreadable(error: OSError) -> None:
    """Log that a directory cannot be listed."""
    _LOG.warning("%s: cannot be listed (%s): its files are left out", shown(Path(error.filename)), error.strerror)
