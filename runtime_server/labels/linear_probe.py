"""Labelled recordings that judge weights, by a linear probe and the nearest neighbours of their embeddings.

    probe = LinearProbe(Path("recordings/"), front_end)      # or a CSV file,label[,fold], as for `ssc server label`
    probe.score(model).accuracy

No encoder is trained on them: they show whether a release would lose what the labels distinguish.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from runtime_edge.errors import UsageError
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_server.labels.head_training import Examples, folds_of, validate
from runtime_server.labels.labelled import is_events, read_clips, windows_of
from runtime_server.suffix.generations import CutModel
from runtime_server.training.embedding_metrics import knn_accuracy
from streamsplit_compile.encoder.segment import run_segments

MAX_WINDOWS = 256
_BATCH = 32
_NEIGHBOURS = 5


@dataclass(frozen=True)
class ProbeScore:
    """The quality of some weights, on labelled recordings that the probe was not fitted to."""

    accuracy: float
    """Share of windows that a linear probe labels correctly."""
    knn_accuracy: float | None
    """Share of windows that their nearest neighbours label correctly; None if a window may have several labels."""


class LinearProbe:
    """At most `MAX_WINDOWS` windows of the recordings, if possible the same number of each."""

    def __init__(self, source: Path, front_end: FrontEndInfo, seed: int = 0) -> None:
        """Raises UsageError, FormatError or SourceError for recordings that cannot be used, naming them."""
        if is_events(source):
            raise UsageError(f"{source}: names what devices heard; a probe needs recordings, such as a folder of clips")
        clips = read_clips(source)
        every = -(-len(clips) // MAX_WINDOWS)
        heard = windows_of(clips[::every], front_end, most=max(1, MAX_WINDOWS // len(clips)))
        folds = folds_of(heard, seed)
        if folds is None or len(heard.labels) < 2:
            raise UsageError(f"{source}: too little to judge by: give at least two labels, each in several recordings")
        self.examples = replace(heard, folds=folds)
        """The windows (n, samples), in the place of embeddings, with their labels and folds."""

    def score(self, model: CutModel) -> ProbeScore:
        """Score some weights."""
        embeddings = embedded(model, self.examples.embeddings)
        if not np.isfinite(embeddings).all():
            return ProbeScore(0.0, 0.0)
        examples = replace(self.examples, embeddings=embeddings)
        validation = validate(examples)
        assert validation is not None  # there are folds
        return ProbeScore(validation.accuracy, _knn(examples) if examples.exclusive else None)


def embedded(model: CutModel, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Embeddings (n, d) of windows (n, samples)."""
    with torch.inference_mode():
        heard = torch.from_numpy(windows)
        parts = [heard[start : start + _BATCH] for start in range(0, len(heard), _BATCH)]
        return np.asarray(torch.cat([run_segments(model.segments, part) for part in parts]).numpy())


def _knn(examples: Examples) -> float | None:
    """Share of windows labelled correctly by their nearest neighbours in the other folds."""
    embeddings, labels = torch.from_numpy(examples.embeddings), torch.from_numpy(examples.truth.argmax(axis=1))
    right = 0.0
    assert examples.folds is not None
    for fold in np.unique(examples.folds):
        out = torch.from_numpy(examples.folds == fold)
        neighbours = min(_NEIGHBOURS, int((~out).sum()))
        accuracy = knn_accuracy(embeddings[~out], labels[~out], neighbours, embeddings[out], labels[out])
        right += accuracy * int(out.sum())
    return right / len(labels)
