"""Fits the static tables that code a bottleneck's latents (`runtime_edge.formats.latent_codec`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime_edge.formats.encoder.bottleneck_info import SYMBOLS
from runtime_edge.formats.latent_codec import TOTAL

_PRIOR = 200.0
"""How many observed values the geometric law counts as."""


def coding_tables(values: npt.NDArray[np.int8]) -> bytes:
    """Tables for latents (windows, channels, rows, columns) like these.

    In each channel the frequencies of the values are mixed with a geometric law of the same mean magnitude, which
    counts as `_PRIOR` values, so that a value that has not occurred yet does not cost too much.
    """
    steps = np.arange(SYMBOLS) - SYMBOLS // 2
    tables = []
    for channel in np.moveaxis(values, 1, 0).reshape(values.shape[1], -1):
        centre = int(np.median(channel))
        ratio = (spread := np.abs(channel - float(centre)).mean() + 0.05) / (1 + spread)
        law = np.maximum(ratio ** np.abs(steps - centre), 1e-6)
        counts = np.bincount(channel.astype(np.int64) + SYMBOLS // 2, minlength=SYMBOLS) + _PRIOR * law / law.sum()
        exact = counts / counts.sum() * (TOTAL - SYMBOLS)
        frequencies = 1 + np.floor(exact).astype(np.int64)
        frequencies[np.argsort(exact % 1)[::-1][: TOTAL - frequencies.sum()]] += 1
        tables.append(frequencies)
    return np.stack(tables).astype("<u2").tobytes()
