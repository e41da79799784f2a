"""The labelled recordings of both data sets, and how ways of answering them are judged, clip by clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime_server.labels.head_training import mean_by_group
from runtime_server.labels.labelled import LabelledClip, read_clips
from tools.reference.corpus import HELD_OUT_FOLD, SETS

Bools = npt.NDArray[np.bool_]
_DRAWS = 2000


def split_clips(audio: Path) -> tuple[list[tuple[LabelledClip, str]], list[LabelledClip]]:
    """The clips of the fold that is judged, each with its data set, and those of the other folds."""
    every = [(clip, name) for name in SETS for clip in read_clips(audio / name / "labels.csv")]
    judged = [(clip, name) for clip, name in every if clip.fold == HELD_OUT_FOLD]
    return judged, [clip for clip, _ in every if clip.fold != HELD_OUT_FOLD]


def right_clips(scores: npt.NDArray[np.float64], owners: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> Bools:
    """Whether the label with the best mean score is right, (clips,); clips without a window count as wrong.

    `scores` (windows, labels) are of windows that belong to the clips `owners` (windows,); `truth` (clips,) has indices
    of the labels.
    """
    audible, found = np.unique(owners), np.zeros(len(truth), np.bool_)
    found[audible] = mean_by_group(scores, owners).argmax(1) == truth[audible]
    return found


def interval(plain: Bools, found: Bools) -> tuple[float, float]:
    """The 95 % interval of the points lost, by a paired bootstrap over clips."""
    lost = 100.0 * (plain.astype(float) - found.astype(float))
    random = np.random.default_rng(0)
    draws = [lost[random.integers(0, len(lost), len(lost))].mean() for _ in range(_DRAWS)]
    return float(np.percentile(draws, 2.5)), float(np.percentile(draws, 97.5))
