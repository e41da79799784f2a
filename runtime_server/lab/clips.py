"""Labelled recordings of one length (ESC-10, Speech Commands), and how well embeddings separate their classes.

The only file that imports scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from runtime_edge.errors import FormatError, MissingExtra
from runtime_server.labels.csv_fields import filled, named_rows

SAMPLE_RATE, CLIP_SAMPLES = 16_000, 80_000
FOLDS = 5
_NEIGHBOURS = 10
_COLUMNS = "filename,class,fold"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clips:
    """Recordings of equal length."""

    waveforms: Array
    """(clips, samples) float32 at 16 kHz."""
    labels: npt.NDArray[np.int64]
    folds: npt.NDArray[np.int64]
    """1 to 5; all recordings of one source are in the same fold."""

    def select(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Clips:
        """The chosen clips."""
        return Clips(self.waveforms[chosen], self.labels[chosen], self.folds[chosen])

    def at_most(self, count: int) -> Clips:
        """The first `count` clips of each class and fold."""
        kinds = np.unique(np.stack([self.labels, self.folds]), axis=1).T
        places = [np.flatnonzero((self.labels == label) & (self.folds == fold))[:count] for label, fold in kinds]
        return self.select(np.sort(np.concatenate(places)))

    def heard_through(self, change: Callable[[Array, int], Array]) -> Clips:
        """The same clips, after `change` was applied to each waveform (samples,) and its number."""
        changed = [change(waveform, number) for number, waveform in enumerate(self.waveforms)]
        return replace(self, waveforms=np.stack(changed))

    def windows(self, samples: int, hop: int) -> Array:
        """(clips, windows, samples), as a view."""
        view = np.lib.stride_tricks.sliding_window_view(self.waveforms, samples, axis=1)
        windows: Array = view[:, ::hop]
        return windows


def load_clips(root: Path, data: str = "esc10", samples: int = CLIP_SAMPLES) -> Clips:
    """Read `<root>/<data>/labels.csv` and the recordings it names, each cut or padded with silence to `samples`.

    Raises FormatError naming file and line.
    """
    table = root / data / "labels.csv"
    rows = named_rows(table)
    if not rows:
        raise FormatError(f"{table}: no recordings; the first line names the columns: {_COLUMNS}")
    waveforms, classes, folds = np.zeros((len(rows), samples), np.float32), [], []
    for place, (number, row) in enumerate(rows):
        where = f"{table}: line {number}"
        name, label, fold = (filled(row, column, where, _COLUMNS) for column in _COLUMNS.split(","))
        audio = _audio(table.parent / name, where)[:samples]
        waveforms[place, : len(audio)] = audio
        classes.append(label)
        folds.append(_fold(fold, where))
    known = {label: index for index, label in enumerate(sorted(set(classes)))}
    return Clips(waveforms, np.array([known[label] for label in classes]), np.array(folds))


def _audio(path: Path, where: str) -> Array:
    """A recording (samples,)."""
    audio: Array
    try:
        audio, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.LibsndfileError) as exc:
        raise FormatError(f"{where}: {path}: cannot be read ({exc})") from None
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    if rate != SAMPLE_RATE or channels > 1:
        raise FormatError(f"{where}: {path}: {rate} Hz in {channels} channels, not {SAMPLE_RATE} in one")
    return audio


def _fold(text: str, where: str) -> int:
    if text not in map(str, range(1, FOLDS + 1)):
        raise FormatError(f"{where}: fold: {text!r} is not a number from 1 to {FOLDS}")
    return int(text)


def probe_accuracy(embeddings: Array, clips: Clips, held_out_fold: int, asked: Array | None = None) -> float:
    """Share of a fold's clips that logistic regression on the other folds' embeddings (clips, d) classifies correctly.

    If `asked` is given, the fold's clips are classified by these other embeddings.
    """
    sklearn = _sklearn()
    train, test = clips.folds != held_out_fold, clips.folds == held_out_fold
    probe = sklearn.pipeline.make_pipeline(
        sklearn.preprocessing.StandardScaler(), sklearn.linear_model.LogisticRegression(max_iter=2000)
    )
    probe.fit(embeddings[train], clips.labels[train])
    return float(probe.score((embeddings if asked is None else asked)[test], clips.labels[test]))


def precision_at_10(embeddings: Array, clips: Clips, fold: int | None = None) -> float:
    """Share of a clip's ten nearest clips in other folds (by cosine) that have its class; the mean over the clips.

    The mean is over all clips, or over those of one fold.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    near = unit @ unit.T
    near[clips.folds[:, None] == clips.folds[None]] = -np.inf
    nearest = np.argsort(-near, axis=1)[:, :_NEIGHBOURS]
    right = clips.labels[nearest] == clips.labels[:, None]
    return float((right if fold is None else right[clips.folds == fold]).mean())


def silhouette(embeddings: Array, clips: Clips) -> float:
    """Mean silhouette coefficient of the classes, by cosine distance."""
    return float(_sklearn().metrics.silhouette_score(embeddings, clips.labels, metric="cosine"))


def _sklearn() -> Any:
    try:
        import sklearn
        import sklearn.linear_model
        import sklearn.metrics
        import sklearn.pipeline
        import sklearn.preprocessing
    except ImportError as exc:
        raise MissingExtra("scikit-learn", "bench") from exc
    return sklearn
