"""Latents of a bottleneck to bytes and back, by static tables: the same bytes on every processor.

    codec = LatentCodec(bundle.read(info.coding.file), info.shape)
    payload, coded = codec.encode(latent, width=8)
    codec.decode(payload, coded, width=8)

A latent is rounded to whole numbers of 8 bits. A range coder (rANS: docs/formats.md, "Payload") writes each value
according to its frequency in its channel, with integers of at most 40 bits. The tables do not depend on the data.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import BundleError, FrameError
from runtime_edge.formats.encoder.bottleneck_info import CODING_BYTES, SYMBOLS

Array = npt.NDArray[np.float32]

TOTAL_BITS = 16
TOTAL = 1 << TOTAL_BITS
"""The sum of a channel's frequencies."""
_STATE_BYTES = 4
_LOWEST = 1 << 24
"""Lowest state of the coder between two values: the state then has 4 bytes, the last of them not 0."""


class LatentCodec:
    """Encodes the latents of one cut.

    `tables` holds the frequencies of -128 to 127 for each channel, uint16, little-endian. Raises BundleError if they do
    not fit the latent's `shape` (1, channels, rows, columns).
    """

    def __init__(self, tables: bytes, shape: tuple[int, ...]) -> None:
        self.shape = shape
        channels, self._positions = shape[1], shape[2] * shape[3]
        if len(tables) != CODING_BYTES * channels:
            raise BundleError(
                f"coding tables of {len(tables)} bytes, {channels} channels have {CODING_BYTES * channels}"
            )
        frequencies = np.frombuffer(tables, "<u2").reshape(channels, SYMBOLS).astype(np.int64)
        if not ((frequencies > 0).all() and (frequencies.sum(axis=1) == TOTAL).all()):
            raise BundleError(f"coding tables: each channel needs {SYMBOLS} frequencies above 0 that make {TOTAL}")
        self._frequencies = frequencies
        self._below = np.cumsum(frequencies, axis=1) - frequencies

    def encode(self, latent: Array, width: int) -> tuple[bytes, bool]:
        """Encode the first `width` channels of a latent of `shape`; returns payload and whether coding shrank it.

        Values are rounded and limited to 8 bits; NaN becomes 0.
        """
        values = quantise(latent)[0, :width].reshape(width, -1)
        symbols = values.astype(np.int64) + SYMBOLS // 2
        frequencies = np.take_along_axis(self._frequencies[:width], symbols, 1).ravel().tolist()
        below = np.take_along_axis(self._below[:width], symbols, 1).ravel().tolist()
        state, written = _LOWEST, bytearray()
        # The value encoded last is decoded first.
        for frequency, start in zip(reversed(frequencies), reversed(below), strict=True):
            while state >= frequency << 16:
                written.append(state & 0xFF)
                state >>= 8
            state = (state // frequency << TOTAL_BITS) + state % frequency + start
        written += state.to_bytes(_STATE_BYTES, "little")
        written.reverse()
        return (bytes(written), True) if len(written) < values.size else (values.tobytes(), False)

    def decode(self, payload: bytes, coded: bool, width: int) -> Array:
        """The latent of `shape`, with zeros in the channels from `width` on. Raises FrameError."""
        if not 1 <= width <= self.shape[1]:
            raise FrameError(f"width {width}: this cut's bottleneck has 1 to {self.shape[1]} channels")
        size = width * self._positions
        if (coded and len(payload) >= size) or (not coded and len(payload) != size):
            raise FrameError(f"payload has {len(payload)} bytes, {width} channels have {size} before coding")
        latent = np.zeros(self.shape, np.float32)
        values = self._decoded(payload, width) if coded else np.frombuffer(payload, np.int8)
        latent[0, :width] = values.reshape(width, *self.shape[2:])
        return latent

    def _decoded(self, payload: bytes, width: int) -> npt.NDArray[np.int64]:
        state, rest = int.from_bytes(payload[:_STATE_BYTES], "big"), iter(payload[_STATE_BYTES:])
        found = []
        for frequencies, below in zip(self._frequencies[:width].tolist(), self._below[:width].tolist(), strict=True):
            for _ in range(self._positions):
                place = state & (TOTAL - 1)
                symbol = bisect_right(below, place) - 1
                found.append(symbol)
                state = frequencies[symbol] * (state >> TOTAL_BITS) + place - below[symbol]
                while state < _LOWEST:
                    if (byte := next(rest, None)) is None:
                        raise FrameError("payload ends before its last value")
                    state = state << 8 | byte
        if state != _LOWEST or next(rest, None) is not None:
            raise FrameError("payload does not end with its last value")
        return np.array(found) - SYMBOLS // 2


def quantise(latent: Array) -> npt.NDArray[np.int8]:
    """Round to whole numbers of 8 bits, in the same shape; NaN becomes 0."""
    return np.rint(np.clip(np.nan_to_num(latent), -128, 127)).astype(np.int8)
