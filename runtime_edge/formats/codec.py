"""Activations to bytes and back: float32, float16, int8 (static per-channel affine) or pcm16 (the waveform).

>>> codec = CutCodec(cut, "int8")           # doctest: +SKIP
>>> payload, compressed = codec.encode(activation)   # doctest: +SKIP
>>> codec.decode(payload, compressed)       # doctest: +SKIP
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_edge.base.zstd import (
    ZstdCompressor,
    ZstdDecompressor,
    ZstdError,
    compress_frame,
    decompress_frame,
    get_frame_info,
)
from runtime_edge.errors import BundleError, FrameError
from runtime_edge.formats.manifest import Cut

Array = npt.NDArray[np.float32]

ENCODINGS = ("float32", "float16", "int8", "pcm16")
STREAMS = ("pcm16-stream", "flac", "opus")
"""Encodings of the waveform whose frames carry only what is new in a window (`runtime_edge.audio.wire_streams`)."""
PCM_SCALE = np.float32(32767.0)
"""The value of full scale in 16-bit samples."""
_DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "i1", "pcm16": "<i2"}
_LARGEST = {"float32": float(np.finfo(np.float32).max), "float16": 65504.0}


class CutCodec:
    """Encodes the activation of one cut. Buffers are allocated once; not safe for use by two threads."""

    def __init__(self, cut: Cut, encoding: str, level: int = 1) -> None:
        if encoding not in ENCODINGS:
            raise BundleError(f"encoding {encoding!r}: expected one of {', '.join(ENCODINGS)}")
        self.shape = cut.shape
        self.encoding = encoding
        self._wire = np.empty(cut.shape, _DTYPES[encoding])
        self._float = np.empty(cut.shape, np.float32)
        self._raw = self._wire.reshape(-1).view(np.uint8).data
        self._scale: Array | None = None
        if encoding == "int8":
            if cut.int8 is None:
                raise BundleError(f"cut {cut.name}: the bundle holds no int8 scales for it")
            scale, zero = cut.int8.arrays(cut.shape)
            along = [1] * len(cut.shape)
            along[cut.int8.axis] = -1
            self._scale = scale.reshape(along)
            self._zero = zero.reshape(along).astype(np.float32)
        self._compressor = ZstdCompressor(level=level)

    @property
    def raw_bytes(self) -> int:
        """Payload bytes before zstd."""
        return self._wire.nbytes

    def encode(self, activation: Array) -> tuple[memoryview, bool]:
        """Encode one activation of shape `cut.shape`; returns (payload, whether zstd made it smaller).

        The payload is valid until the next `encode`: unless zstd makes it smaller, it is a view of the codec's buffer.
        NaN becomes 0 and infinities the largest value the encoding holds.
        """
        if self.encoding in ("int8", "pcm16"):
            self._quantise(activation)
        else:
            self._cast(activation)
        packed = compress_frame(self._compressor, self._raw)
        return (memoryview(packed), True) if len(packed) < len(self._raw) else (self._raw, False)

    def decode(self, payload: bytes | memoryview, compressed: bool) -> Array:
        """Decode to float32 of shape `cut.shape` (a fresh array). Raises FrameError on any other length."""
        if compressed:
            payload = self._decompress(payload)
        if len(payload) != self.raw_bytes:
            raise FrameError(f"payload has {len(payload)} bytes, this cut in {self.encoding} has {self.raw_bytes}")
        wire = np.frombuffer(payload, self._wire.dtype).reshape(self.shape)
        if self.encoding == "int8":
            assert self._scale is not None
            values: Array = (wire.astype(np.float32) - self._zero) * self._scale
            return values
        values = wire.astype(np.float32)
        if self.encoding == "pcm16":
            values /= PCM_SCALE
            return values
        if not np.isfinite(values).all():
            raise FrameError("payload holds NaN or infinite values")
        return values

    @cached_property
    def _steps(self) -> tuple[Array | np.float32, ...]:
        """Lowest and highest value, inverse scale and zero point.

        For int8 they are expanded to every value: numpy allocates to broadcast, which takes twice as long.
        """
        if self._scale is None:
            low, high = np.iinfo(self._wire.dtype).min / PCM_SCALE, np.iinfo(self._wire.dtype).max / PCM_SCALE
            return low, high, PCM_SCALE, np.float32(0.0)
        scale, zero = self._scale, self._zero
        values = (-128.0 - zero) * scale, (127.0 - zero) * scale, (1.0 / scale).astype(np.float32), zero
        return tuple(np.broadcast_to(value, self.shape).copy() for value in values)

    def _quantise(self, activation: Array) -> None:
        low, high, factor, zero = self._steps
        scratch = np.maximum(activation, low, out=self._float)  # clip first, so that the product cannot overflow
        np.minimum(scratch, high, out=scratch)
        np.multiply(scratch, factor, out=scratch)
        np.add(scratch, zero, out=scratch)
        if math.isnan(np.add.reduce(scratch, None)):
            np.copyto(scratch, zero, where=np.isnan(scratch))
        np.rint(scratch, out=self._wire, casting="unsafe")

    def _cast(self, activation: Array) -> None:
        limit = _LARGEST[self.encoding]
        if not (activation.min() >= -limit and activation.max() <= limit):  # NaN fails both comparisons
            activation = np.clip(activation, -limit, limit, out=self._float)
            np.copyto(activation, 0.0, where=np.isnan(activation))
        np.copyto(self._wire, activation, casting="same_kind")

    def _decompress(self, payload: bytes | memoryview) -> bytes:
        try:
            size = get_frame_info(payload).decompressed_size
            if size != self.raw_bytes:
                raise FrameError(f"payload would unpack to {size} bytes, expected {self.raw_bytes}")
            found = decompress_frame(ZstdDecompressor(), payload, self.raw_bytes)
        except ZstdError as exc:
            raise FrameError(f"payload is not a zstd frame ({exc})") from None
        if found is None:
            raise FrameError(f"payload does not unpack to the {self.raw_bytes} bytes it claims")
        return found


def to_pcm(samples: Array) -> npt.NDArray[np.int16]:
    """Samples in [-1, 1] as whole numbers; those beyond full scale are clipped, NaN becomes 0."""
    scaled = np.nan_to_num(np.rint(samples * PCM_SCALE), posinf=np.inf, neginf=-np.inf)
    pcm: npt.NDArray[np.int16] = np.clip(scaled, -32768, 32767).astype("<i2")
    return pcm


def from_pcm(pcm: npt.NDArray[np.int16]) -> Array:
    """The samples of whole numbers."""
    samples: Array = pcm.astype(np.float32) / PCM_SCALE
    return samples


def channel_axis(shape: tuple[int, ...]) -> int:
    """Axis whose entries get a scale each: channels of (N, C, F, T), bands of a single channel, otherwise the last."""
    if len(shape) >= 4:
        return 1 if shape[1] > 1 else 2
    return len(shape) - 1


def int8_scale(low: npt.NDArray[Any], high: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scale (float32) and zero point (int8) per channel so that [low, high], widened to hold 0, maps to int8."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = np.maximum((high - low) / 255.0, 1e-8).astype("<f4")
    zero = np.clip(np.rint(-128.0 - low / scale), -128, 127).astype("i1")
    return scale, zero
