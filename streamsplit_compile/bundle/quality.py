"""Measures A(k, u) of docs/method.md, section 6: how agreement depends on a window's uncertainty."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime_edge.policy.memory import COLD_WINDOWS, GaussianMemory

BINS = 4
"""Number of equally wide bins over uncertainties in [0, 1]."""
_PASSES = 3


def uncertainties(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Normalised uncertainty (n,) of embeddings (n, d), by a device's memory after it has learnt them."""
    memory = GaussianMemory(dim=embeddings.shape[1])
    for _ in range(_PASSES + COLD_WINDOWS // len(embeddings)):
        memory.update(embeddings)
    return np.array([memory.uncertainty(embedding) for embedding in embeddings])


def by_uncertainty(cosines: npt.NDArray[np.float64], uncertainty: npt.NDArray[np.float64]) -> list[float]:
    """Median cosine in each bin of uncertainty; an empty bin gets the median of all. Both arguments are (n,)."""
    place = np.minimum((uncertainty * BINS).astype(int), BINS - 1)
    overall = float(np.median(cosines))
    found = [float(np.median(cosines[place == i])) if (place == i).any() else overall for i in range(BINS)]
    return [round(value, 7) for value in found]
