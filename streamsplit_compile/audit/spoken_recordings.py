"""Recordings of spoken words by known speakers, for attackers to learn from and to be judged on.

A directory has one subfolder for each word, and each file's name begins with its speaker, up to the first `-` or `_`
(as in Speech Commands). A `labels.csv` in it with the columns `filename,class,speaker,fold` says more: the last fold is
then judged, which matters if the encoder was trained on the others.

    spoken = read_spoken(Path("speech_commands/"), sample_rate=16_000, samples=16_000)
    spoken.test                 # recordings of speakers whom no attacker hears before
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime_edge.audio import open_source
from runtime_edge.audio.files.folder import audio_files
from runtime_edge.base.text import shown
from runtime_edge.errors import FormatError, SourceError, UsageError

_LOG = logging.getLogger(__name__)
LABELS = "labels.csv"
_COLUMNS = ("filename", "class", "speaker", "fold")
_JUDGED_SHARE = 0.25
_LEAST_SPEAKERS = 8
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpokenRecordings:
    """One window of each recording."""

    windows: npt.NDArray[np.float32]
    """(recordings, samples)."""
    words: Numbers
    """(recordings,): index of the word in `vocabulary`."""
    speakers: Numbers
    """(recordings,): number of the speaker."""
    test: npt.NDArray[np.bool_]
    """(recordings,): whether it is judged; no speaker is on both sides."""
    vocabulary: tuple[str, ...]


def read_spoken(place: Path, sample_rate: int, samples: int, most: int | None = None) -> SpokenRecordings:
    """The loudest stretch of `samples` of each recording, padded with silence on both sides if it is shorter.

    With `most`, every so many recordings are left out, so that no more than `most` remain. Raises UsageError if there
    are too few words or speakers, FormatError for a wrong `labels.csv`, SourceError when nothing can be read.
    """
    rows = _labelled(place) if (place / LABELS).is_file() else _named(place)
    if most is not None and len(rows) > most:
        rows = [rows[int(at)] for at in np.linspace(0, len(rows) - 1, most)]
    windows, kept = [], []
    for row in rows:
        try:
            windows.append(_loudest(_read(row[0], sample_rate), samples))
            kept.append(row)
        except SourceError as exc:
            _LOG.warning("skipped: %s", exc)
    if not kept:
        raise SourceError(f"{shown(place)}: none of the recordings can be read, see the log")
    vocabulary, words = np.unique([word for _, word, _, _ in kept], return_inverse=True)
    names, speakers = np.unique([speaker for _, _, speaker, _ in kept], return_inverse=True)
    if len(vocabulary) < 2 or len(names) < _LEAST_SPEAKERS:
        raise UsageError(
            f"{shown(place)}: {len(vocabulary)} words by {len(names)} speakers; an audit needs at least 2 words and "
            f"{_LEAST_SPEAKERS} speakers: WORD/SPEAKER-TAKE.flac"
        )
    test = _judged(speakers, [fold for *_, fold in kept])
    if not test.any() or test.all() or set(speakers[test]) & set(speakers[~test]):
        raise UsageError(f"{shown(place / LABELS)}: fold: a speaker must be in one fold, and there must be two folds")
    return SpokenRecordings(np.stack(windows), words, speakers, test, tuple(map(str, vocabulary)))


Row = tuple[Path, str, str, int | None]
"""A recording, its word, its speaker and its fold."""


def _named(place: Path) -> list[Row]:
    if not place.is_dir():
        raise UsageError(f"{shown(place)}: no such directory; --recordings takes one with a subfolder for each word")
    folders = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: list[Row] = []
    for folder in folders:
        try:
            found += [(path, folder.name, re.split("[-_]", path.stem)[0], None) for path in audio_files(folder)]
        except SourceError as exc:
            _LOG.warning("%s: word left out", exc)
    if not found:
        raise UsageError(f"{shown(place)}: no recordings in subfolders; make one subfolder for each word")
    return found


def _labelled(place: Path) -> list[Row]:
    table, found = place / LABELS, list[Row]()
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise FormatError(f"{shown(table)}: line 1: no column {missing[0]}; it needs {','.join(_COLUMNS)}")
        for row in reader:
            name, word, speaker, fold = (row[column] or "" for column in _COLUMNS)
            if not (name and word and speaker and fold.isdecimal()):
                where = f"{shown(table)}: line {reader.line_num}"
                raise FormatError(f"{where}: each line needs {', '.join(_COLUMNS)}, and a fold is a whole number")
            found.append((place / name, word, speaker, int(fold)))
    return found


def _judged(speakers: Numbers, folds: Sequence[int | None]) -> npt.NDArray[np.bool_]:
    """Which recordings are judged: the last fold, or those of a quarter of the speakers, evenly spread by name."""
    known = [fold for fold in folds if fold is not None]
    if known:
        return np.array([fold == max(known) for fold in folds])
    count = int(speakers.max()) + 1
    chosen = np.linspace(0, count - 1, max(2, round(_JUDGED_SHARE * count))).astype(int)
    return np.isin(speakers, chosen)


def _read(path: Path, sample_rate: int) -> npt.NDArray[np.float32]:
    blocks = [block.samples for block in open_source(str(path), sample_rate)]
    if not blocks:
        raise SourceError(f"{shown(path)}: no audio in it")
    return np.concatenate(blocks)


def _loudest(audio: npt.NDArray[np.float32], samples: int) -> npt.NDArray[np.float32]:
    """The loudest stretch (samples,) of a recording."""
    if len(audio) <= samples:
        before = (samples - len(audio)) // 2
        return np.pad(audio, (before, samples - len(audio) - before))
    power = np.cumsum(np.concatenate([[0.0], np.square(audio, dtype=np.float64)]))
    start = int((power[samples:] - power[:-samples]).argmax())
    return audio[start : start + samples]
