"""The audio that a bench's devices hear and that their bundles are calibrated on: recordings, or a soundscape."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_edge.audio import open_source
from runtime_edge.audio.files.folder import audio_files
from runtime_edge.errors import SourceError, UsageError
from runtime_server.lab.clips import Array
from runtime_server.labels.labelled import read_clips
from streamsplit_compile.bundle.soundscape import soundscape

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchAudio:
    """Recordings of a directory: all of them, or split by a fold."""

    directory: Path | None = None
    """None: a synthesised soundscape."""
    fold: int | None = None
    """The fold that is heard and judged; everything that is fitted to recordings uses the other folds."""

    def __post_init__(self) -> None:
        """Raises UsageError for a fold without recordings."""
        if self.fold is not None and self.directory is None:
            raise UsageError("--fold divides recordings; give some with --audio")

    def calibration(self, work: Path) -> Path | None:
        """The directory to calibrate on, which may consist of links below `work`. Raises SourceError, FormatError."""
        if self.directory is None or self.fold is None:
            return self.directory
        links = work / "calibration"
        for number, path in enumerate(sorted({*audio_files(self.directory)} - {*self._of_fold()})):
            links.mkdir(exist_ok=True)
            (links / f"{number}{path.suffix}").symlink_to(path.resolve())
        return links

    def waveform(self, seconds: float, rate: int, seed: int) -> Array:
        """Recordings one after the other, in an order chosen by the seed, as 16-bit samples."""
        wanted = round(seconds * rate)
        found = soundscape(seconds, rate, seed) if self.directory is None else self._joined(wanted, rate, seed)
        pcm: Array = np.rint(found[:wanted] * 32767).astype(np.int16).astype(np.float32) / np.float32(32768)
        return pcm

    def _joined(self, wanted: int, rate: int, seed: int) -> Array:
        assert self.directory is not None
        paths = audio_files(self.directory) if self.fold is None else self._of_fold()
        parts: list[Array] = []
        have = 0
        for index in np.random.default_rng(seed).permutation(len(paths)):
            try:
                parts += [block.samples for block in open_source(str(paths[index]), rate, realtime=False)]
            except SourceError as exc:
                _LOG.warning("skipped: %s", exc)
            if (have := sum(part.size for part in parts)) >= wanted:
                break
        if not parts:
            raise SourceError(f"{self.directory}: none of its {len(paths)} audio files can be read, see the log")
        return np.resize(np.concatenate(parts), max(wanted, have))

    def _of_fold(self) -> list[Path]:
        """The recordings that a `labels.csv` in the directory or in one of its folders assigns to the fold."""
        assert self.directory is not None
        tables = sorted(self.directory.glob("**/labels.csv"))
        found = sorted({clip.path for table in tables for clip in read_clips(table) if clip.fold == self.fold})
        if not found:
            raise UsageError(f"--fold {self.fold}: no labels.csv below {self.directory} puts recordings into it")
        return found
