"""Tells whether recordings were among those that an encoder was trained on, from their embeddings.

An attacker knows of half of the people whether their recordings were trained on. It judges the others' by kernel ridge
regression on the embedding, and by how sure a classifier of words is that knows the first half (Shokri et al. 2017,
Yeom et al. 2018). What counts is the area under the ROC curve, 0.5 if nothing can be told.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

from streamsplit_compile.audit.kernel_regression import Scores, gaussian_kernel, ridge_scores
from streamsplit_compile.audit.outlets import Array
from streamsplit_compile.audit.spoken_recordings import SpokenRecordings

_PENALTY = 1e-2


def membership_auroc(embeddings: Array, spoken: SpokenRecordings, seed: int) -> tuple[float, float, float]:
    """AUROC of the better attacker with its 95 % interval; recordings that are not judged are those trained on.

    `embeddings` are (recordings, d).
    """
    random, known = np.random.default_rng(seed), np.zeros(len(embeddings), np.bool_)
    for side in (spoken.test, ~spoken.test):
        people = random.permutation(np.unique(spoken.speakers[side]))
        known |= np.isin(spoken.speakers, people[: len(people) // 2])
    members, rows = ~spoken.test, embeddings.astype(np.float64)
    rows = (rows - rows[known].mean(0)) / (rows[known].std(0) + 1e-9)
    told = _regression(rows, members[:, None].astype(np.float64), known)[:, 0]
    classes = np.eye(len(spoken.vocabulary))[spoken.words]
    by_word = _regression(rows, classes, known & members)
    sure = by_word[np.arange(len(rows)), spoken.words] - np.sort(by_word, axis=1)[:, -2]
    areas = [auroc(scores[~known & members], scores[~known & ~members]) for scores in (told, sure)]
    return max(areas)


def auroc(positive: Scores, negative: Scores) -> tuple[float, float, float]:
    """Area under the ROC curve of scores (n,) and (m,), with its 95 % interval (Hanley and McNeil 1982)."""
    n, m = len(positive), len(negative)
    area = float(mannwhitneyu(positive, negative).statistic / (n * m))
    both, twice = area / (2 - area), 2 * area * area / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (both - area**2) + (m - 1) * (twice - area**2)) / (n * m)
    half = 1.96 * float(np.sqrt(max(variance, 0.0)))
    return area, max(0.0, area - half), min(1.0, area + half)


def _regression(rows: Scores, targets: Scores, known: npt.NDArray[np.bool_]) -> Scores:
    """Scores (n, classes) of kernel ridge regression with a Gaussian kernel on the rows that are known."""
    return ridge_scores(gaussian_kernel(rows, known), known, targets[known], _PENALTY)
