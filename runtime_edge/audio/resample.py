"""Sample-rate conversion of a stream. The only file that imports soxr."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge.errors import MissingExtra

_NOTHING: NDArray[np.float32] = np.zeros(0, np.float32)


class Resampler:
    """Band-limited conversion of one mono recording from `source_hz` to `target_hz`, piece by piece.

    The pieces it returns, joined, equal the result of one call over the whole recording, whatever the sizes of the
    pieces it was given. Equal rates pass through and need no library.

    Raises:
        MissingExtra: the rates differ and soxr is not installed.
    """

    def __init__(self, source_hz: int, target_hz: int) -> None:
        self._stream: Any = None if source_hz == target_hz else _soxr_stream(source_hz, target_hz)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take float32[n] at the source rate, return what is ready: float32[m] at the target rate, m >= 0."""
        if self._stream is None:
            return samples
        return self._clip(self._stream.resample_chunk(samples, last=False))

    def finish(self) -> NDArray[np.float32]:
        """Return the samples still inside the filter: float32[m], m >= 0. The resampler is used up."""
        if self._stream is None:
            return _NOTHING
        return self._clip(self._stream.resample_chunk(_NOTHING, last=True))

    @staticmethod
    def _clip(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        # A full-scale signal overshoots a little in any steep filter; that is not bad input.
        return np.clip(samples, -1.0, 1.0, out=samples)


def _soxr_stream(source_hz: int, target_hz: int) -> Any:
    try:
        import soxr
    except ImportError as exc:
        raise MissingExtra("soxr", "audio") from exc
    return soxr.ResampleStream(source_hz, target_hz, 1, dtype="float32", quality="HQ")
