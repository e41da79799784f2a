"""Opus as a stream of packets, by the system's libopus. The only file that loads it.

The settings are libopus's best for any kind of sound: application `audio`, complexity 10, variable bit rate. Packets
of 60 ms cost the fewest bytes at low rates; the rest of a chunk goes into shorter ones. Decoded audio lags by the
encoder's look-ahead, 6.5 ms.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import FormatError, UsageError

Samples = npt.NDArray[np.float32]

RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
MAX_PACKET_BYTES = 1275
"""Most bytes of a packet with one frame; libopus makes up to 60 ms into frames of 20 ms, at most three."""

_APPLICATION_AUDIO = 2049
_SET_BITRATE, _SET_VBR, _SET_COMPLEXITY = 4002, 4006, 4010
_DURATIONS = (60.0, 40.0, 20.0, 10.0, 5.0, 2.5)
_LONGEST_MS = 120
_TWO_BYTES = 252
"""Packet lengths from here on take two bytes (RFC 6716, section 3.2.1)."""


class OpusEncoder:
    """One stream of `rate` Hz at `kbps` kbit/s. Raises UsageError for another rate or without libopus."""

    def __init__(self, rate: int, kbps: float) -> None:
        self._rate = rate
        self._handle = _create("encoder", rate, _APPLICATION_AUDIO)
        for request, value in ((_SET_BITRATE, round(kbps * 1000)), (_SET_VBR, 1), (_SET_COMPLEXITY, 10)):
            if _library().opus_encoder_ctl(self._handle, request, ctypes.c_int(value)):
                raise UsageError(f"libopus refuses {kbps:g} kbit/s")
        self._packet = (ctypes.c_ubyte * (3 * MAX_PACKET_BYTES))()

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            _library().opus_encoder_destroy(handle)

    def encode(self, samples: Samples) -> bytes:
        """The packets of the next samples, each after its length. Raises UsageError if not a multiple of 2.5 ms."""
        samples = np.ascontiguousarray(samples, np.float32)
        written = bytearray()
        start = 0
        for size in packet_sizes(samples.size, self._rate):
            count = _library().opus_encode_float(
                self._handle, _pointer(samples[start : start + size]), size, self._packet, len(self._packet)
            )
            if count < 0:
                raise UsageError(f"libopus cannot encode {size} samples (error {count})")
            written += _length(count) + bytes(self._packet[:count])
            start += size
        return bytes(written)


class OpusDecoder:
    """The counterpart of an `OpusEncoder`. Raises UsageError for another rate or without libopus."""

    def __init__(self, rate: int) -> None:
        self._handle = _create("decoder", rate)
        self._buffer = np.empty(rate * _LONGEST_MS // 1000, np.float32)

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            _library().opus_decoder_destroy(handle)

    def decode(self, packets: bytes, samples: int) -> Samples:
        """Exactly `samples` more samples. Raises FormatError for packets that hold more or fewer, or are malformed."""
        decoded: list[Samples] = []
        left, position = samples, 0
        while position < len(packets):
            position, packet = _next(packets, position)
            count = _library().opus_decode_float(
                self._handle, packet, len(packet), _pointer(self._buffer), self._buffer.size, 0
            )
            if not 0 < count <= left:
                raise FormatError(f"an Opus packet gives {count} samples where {left} are left")
            decoded.append(self._buffer[:count].copy())
            left -= count
        if left:
            raise FormatError(f"Opus packets lack {left} of {samples} samples")
        return np.concatenate(decoded)


def packet_sizes(samples: int, rate: int) -> list[int]:
    """Samples of each packet of a chunk: as many of 60 ms as fit, then shorter ones. Raises UsageError."""
    sizes: list[int] = []
    left = samples
    for duration_ms in _DURATIONS:
        size = int(rate * duration_ms / 1000)
        sizes += [size] * (left // size)
        left %= size
    if left or not samples:
        raise UsageError(f"Opus takes multiples of 2.5 ms; {samples} samples at {rate} Hz are not one")
    return sizes


def _length(count: int) -> bytes:
    if count < _TWO_BYTES:
        return bytes((count,))
    first = _TWO_BYTES + (count - _TWO_BYTES) % 4
    return bytes((first, (count - first) // 4))


def _next(packets: bytes, position: int) -> tuple[int, bytes]:
    """The position where the next packet ends, and the packet."""
    count = packets[position]
    position += 1
    if count >= _TWO_BYTES:
        if position >= len(packets):
            raise FormatError("an Opus packet's length is cut short")
        count += 4 * packets[position]
        position += 1
    if not count or position + count > len(packets):
        raise FormatError(f"an Opus packet of {count} bytes where {len(packets) - position} are left")
    return position + count, packets[position : position + count]


def _create(kind: str, rate: int, *arguments: int) -> int:
    if rate not in RATES:
        raise UsageError(f"Opus does not support a sample rate of {rate} Hz, only {', '.join(map(str, RATES))}")
    error = ctypes.c_int()
    create = getattr(_library(), f"opus_{kind}_create")
    handle: int | None = create(rate, 1, *arguments, ctypes.byref(error))
    if not handle or error.value:
        raise UsageError(f"libopus makes no {kind} for {rate} Hz (error {error.value})")
    return handle


def _pointer(samples: Samples) -> Any:
    return samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


@cache
def _library() -> Any:
    name = ctypes.util.find_library("opus")
    if name is None:
        raise UsageError("the library libopus is missing: install it (Debian: apt install libopus0)")
    library = ctypes.CDLL(name)
    handle, integer, floats = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_float)
    library.opus_encoder_create.restype = library.opus_decoder_create.restype = handle
    library.opus_encoder_ctl.argtypes = [handle, integer, integer]
    library.opus_encoder_destroy.argtypes = library.opus_decoder_destroy.argtypes = [handle]
    library.opus_encode_float.argtypes = [handle, floats, integer, ctypes.POINTER(ctypes.c_ubyte), ctypes.c_int32]
    library.opus_decode_float.argtypes = [handle, ctypes.c_char_p, ctypes.c_int32, floats, integer, integer]
    return library
