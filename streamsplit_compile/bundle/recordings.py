"""Reads a few windows out of hours of recordings: first headers, then only the chosen samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime_edge.audio import Counters
from runtime_edge.audio.file_decoder import read_span, readable_length, recording_length
from runtime_edge.audio.files.folder import audio_files
from runtime_edge.audio.resample import Resampler
from runtime_edge.audio.stream import to_mono
from runtime_edge.base.text import shown
from runtime_edge.errors import SourceError, UsageError

_LOG = logging.getLogger(__name__)
_MARGIN_S = 0.1
"""Extra audio read on both sides of a window that is resampled, so that the filter has settled."""
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Recording:
    path: Path
    frames: int
    rate: int
    start: int
    """Where it begins in the concatenation of all recordings, in samples at the requested rate."""
    stop: int


def sample_windows(
    place: Path, sample_rate: int, window: int, hop: int, count: int, seed: int, unseen: bool = False
) -> Samples:
    """At most `count` windows (n, window) float32 from a file, or from all files below a directory.

    The recordings form one long stream, cut into as many equal stretches as windows are wanted; the seed chooses one
    window from each. With `unseen` the result has as many other windows, which share no sample with those chosen
    without it; (0, window) if the recordings are too short. Files that cannot be read, and whatever follows damage in
    one, are left out with one warning each in the log, which `unseen` does not repeat.

    Raises UsageError for less than one window, SourceError when nothing can be read.
    """
    if not place.exists():
        raise SourceError(f"{shown(place)}: no such file or directory; --calibrate takes recordings")
    paths = audio_files(place) if place.is_dir() else [place]
    damaged: set[Path] = set()
    told: set[Path] = set(paths) if unseen else set()
    while True:
        recordings = _line_up(paths, damaged, sample_rate, told)
        available = max(0, 1 + (recordings[-1].stop - window) // hop)
        if not available:
            raise UsageError(f"{shown(place)}: less than one window of audio; give more recordings to --calibrate")
        edges = np.linspace(0, available, min(count, available) + 1).astype(int)
        chosen = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
        try:
            if unseen:
                chosen = _apart(chosen, available, -(-window // hop))
            found = [_read(recordings, int(index) * hop, window, sample_rate) for index in chosen]
            return np.stack(found) if found else np.empty((0, window), np.float32)
        except _Damaged as exc:
            if not unseen:
                _LOG.warning("%s: what follows is left out", exc.reason)
            if exc.path in damaged:
                paths = [path for path in paths if path != exc.path]
            damaged.add(exc.path)


def _apart(chosen: npt.NDArray[np.int64], available: int, hops: int) -> npt.NDArray[np.int64]:
    """At most as many other windows out of `available`, evenly spread, each at least `hops` from all chosen ones."""
    free = np.ones(available, np.bool_)
    for index in chosen:
        free[max(0, index - hops + 1) : index + hops] = False
    (left,) = np.nonzero(free)
    places = np.linspace(0, len(left) - 1, min(len(chosen), len(left))).astype(int)
    return np.asarray(left[np.unique(places)], np.int64)


class _Damaged(Exception):
    """A recording with a valid header and damaged samples."""

    def __init__(self, path: Path, reason: SourceError) -> None:
        super().__init__(str(reason))
        self.path, self.reason = path, reason


def _line_up(paths: Sequence[Path], damaged: Container[Path], sample_rate: int, told: set[Path]) -> list[_Recording]:
    """The recordings in order, damaged ones up to the damage; adds those that are left out to `told`.

    Raises SourceError when none can be read.
    """
    found: list[_Recording] = []
    wrong = SourceError("none of the recordings can be read, see the log")
    start = 0
    for path in paths:
        try:
            frames, rate = readable_length(path) if path in damaged else recording_length(path)
        except SourceError as exc:
            if path not in told:
                _LOG.warning("skipped: %s", exc)
            told.add(path)
            wrong = exc
            continue
        stop = start + frames * sample_rate // rate
        found.append(_Recording(path, frames, rate, start, stop))
        start = stop
    if not found:
        raise wrong
    return found


def _read(recordings: Sequence[_Recording], start: int, length: int, sample_rate: int) -> Samples:
    """Samples [start, start + length) of the concatenation of all recordings."""
    parts = [
        _resampled(item, max(start, item.start) - item.start, min(start + length, item.stop) - item.start, sample_rate)
        for item in recordings
        if item.start < start + length and item.stop > start
    ]
    return np.concatenate(parts)


def _resampled(recording: _Recording, start: int, stop: int, sample_rate: int) -> Samples:
    """Samples [start, stop) of one recording at `sample_rate`."""
    ratio = recording.rate / sample_rate
    margin = 0 if recording.rate == sample_rate else round(_MARGIN_S * recording.rate)
    step = recording.rate // math.gcd(recording.rate, sample_rate)  # so that both rates have a sample there
    first = max(0, (int(start * ratio) - margin) // step * step)
    last = min(recording.frames, int(np.ceil(stop * ratio)) + margin)
    try:
        mono = to_mono(read_span(recording.path, first, last), Counters())
    except SourceError as exc:
        raise _Damaged(recording.path, exc) from None
    resampler = Resampler(recording.rate, sample_rate)
    audio = np.concatenate([resampler.push(mono), resampler.finish()])
    skipped = start - round(first / ratio)
    audio = audio[skipped : skipped + stop - start]
    return np.pad(audio, (0, stop - start - len(audio)))
