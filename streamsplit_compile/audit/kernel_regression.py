"""Kernel ridge regression: the attackers that need no training of their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve

Scores = npt.NDArray[np.float64]


def linear_kernel(rows: npt.NDArray[np.floating]) -> Scores:
    """(n, n) products of rows (n, values), a share of the number of values."""
    products: Scores = (rows @ rows.T).astype(np.float64)
    found: Scores = products / rows.shape[1]
    return found


def gaussian_kernel(rows: npt.NDArray[np.floating], known: npt.NDArray[np.bool_] | None = None) -> Scores:
    """(n, m) `exp(-d / median d)` of the squared distances `d` from rows (n, values) to the known ones, or to all."""
    others = rows if known is None else rows[known]
    squares = np.square(rows, dtype=np.float64).sum(1)
    of_others = squares if known is None else squares[known]
    distances = np.maximum(squares[:, None] + of_others - 2 * (rows @ others.T).astype(np.float64), 0.0)
    apart = distances[distances > 0]
    return np.exp(-distances / np.median(apart)) if len(apart) else np.ones_like(distances)


def ridge_scores(kernel: Scores, known: npt.NDArray[np.bool_], targets: Scores, penalty: float) -> Scores:
    """Scores (n, classes), given the kernel (n, known) and the targets (known, classes)."""
    own, centre = kernel[known], targets.mean(0)
    weights = solve(own + penalty * np.eye(len(own)), targets - centre, assume_a="pos")
    scores: Scores = kernel @ weights + centre
    return scores
