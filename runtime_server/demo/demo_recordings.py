"""The demo's recordings: a given directory, Debian's recordings, or a synthesised soundscape.

recordings = find_recordings(None, Path(".cache/demo-recordings"), 110.0, seed=0, work, say)
playlist = recordings.playlist(work / "audio" / "pi-wifi", seed=1)    # a folder to play, and what is in it
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from runtime_edge.audio.files.folder import audio_files
from runtime_edge.base.text import shown
from runtime_edge.errors import UsageError
from runtime_server.demo import debian_recordings
from runtime_server.demo.debian_recordings import TABLE
from runtime_server.labels.labelled import LabelledClip, read_clips
from streamsplit_compile.bundle.soundscape import soundscape

SAMPLE_RATE = 16_000
WINDOW_S, HOP_S = 1.0, 0.5
"""Length and hop of the encoder's windows."""
_PIECES = 12
"""Number of files in a synthesised soundscape."""
Playlist = dict[str, LabelledClip]
"""Labelled clips by the name of the file that a device plays, which its results contain."""


@dataclass(frozen=True)
class Recordings:
    """What is played, and the label of each recording if there is one."""

    what: str
    clips: list[LabelledClip]

    def playlist(self, folder: Path, seed: int) -> tuple[Path, Playlist]:
        """Make a folder of links to all recordings, in an order given by `seed`; returns it and what is in it."""
        folder.mkdir(parents=True)
        order = np.random.default_rng(seed).permutation(len(self.clips))
        names: Playlist = {}
        for place, index in enumerate(order):
            clip = self.clips[index]
            name = f"{place:05d}-{clip.path.name}"
            (folder / name).symlink_to(clip.path.resolve())
            names[shown(name)] = clip
        return folder, names

    def judges(self, known: Collection[str], table: Path) -> Path | None:
        """Write a list of the played recordings whose labels a head knows; None if there are none."""
        rows = [(clip.path.resolve(), label) for clip in self.clips if set(clip.labels) <= set(known)
                for label in clip.labels]  # fmt: skip
        if not rows:
            return None
        with table.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("file", "label"), *rows])
        return table

    def windows(self, seconds: float) -> int:
        """Roughly how many windows a device makes in this time; recordings shorter than a window give one each."""
        lengths = [length for clip in self.clips if (length := _seconds(clip.path))]
        if not lengths:  # the device reports what is wrong with them
            return int(seconds / HOP_S)
        windows = sum(1 + max(0, int((length - WINDOW_S) / HOP_S)) for length in lengths)
        return max(1, round(windows * seconds / sum(lengths)))


def find_recordings(
    given: Path | None, cache: Path, seconds: float, seed: int, work: Path, say: Callable[[str], None]
) -> Recordings:
    """The recordings of a directory; else Debian's, kept in `cache`; else a soundscape, synthesised into `work`.

    Raises SourceError if the directory holds no audio, UsageError or FormatError for its `labels.csv`.
    """
    if given is not None:
        return _of_directory(given)
    if debian_recordings.fetch(cache, say):
        return _of_directory(cache, "Debian's packages")
    say("so the devices hear a synthesised soundscape, with nothing to recognise; give --audio (make demo AUDIO=...)")
    folder = work / "soundscape"
    folder.mkdir()
    audio = soundscape(seconds, SAMPLE_RATE, seed)
    for number, piece in enumerate(np.array_split(audio, _PIECES)):
        soundfile.write(folder / f"soundscape-{number:02d}.wav", piece, SAMPLE_RATE, subtype="PCM_16")
    return Recordings(
        "a synthesised soundscape, in which there is nothing to recognise",
        [_unlabelled(p) for p in audio_files(folder)],
    )


def _of_directory(directory: Path, origin: str = "") -> Recordings:
    """The recordings that `labels.csv` names, only the last fold if it has folds; without that file, all recordings."""
    table, origin = directory / TABLE, origin or f"{directory.name}/"
    if not table.exists():
        clips = [_unlabelled(path) for path in audio_files(directory)]
        return Recordings(f"{len(clips)} recordings from {origin}, without labels (no {TABLE})", clips)
    clips = read_clips(table)
    if missing := [clip.path for clip in clips if not clip.path.is_file()]:
        raise UsageError(f"{table}: names {len(missing)} recordings that are not there, such as {missing[0]}")
    folds = [clip.fold for clip in clips if clip.fold is not None]
    fold = ""
    if folds:
        clips, fold = [clip for clip in clips if clip.fold == max(folds)], f", fold {max(folds)} of {TABLE}"
    return Recordings(f"{len(clips)} labelled recordings from {origin}{fold}", clips)


def _seconds(path: Path) -> float:
    """The recording's length in seconds; 0 if it cannot be read."""
    try:
        return float(soundfile.info(path).duration)
    except (OSError, soundfile.LibsndfileError):
        return 0.0


def _unlabelled(path: Path) -> LabelledClip:
    return LabelledClip(path, ())
