"""The waveform on the wire, without sending the overlap of two windows twice: plain, as FLAC, or as Opus.

Windows overlap. A frame of a stream carries only the samples that are new since the previous window; the first frame,
and each one after a gap, restarts with the whole window. The receiver reassembles the windows, so it needs every frame
of a stream in order; a frame whose predecessor is missing is refused, and the device restarts the stream.

    payload = starts a stream? 0 : 1   (one byte), then PCM16, FLAC frames, or Opus packets behind their lengths
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from runtime_edge.audio import flac
from runtime_edge.audio.opus import OpusDecoder, OpusEncoder, packet_sizes
from runtime_edge.errors import FormatError, FrameError, UsageError
from runtime_edge.formats.codec import STREAMS, from_pcm, to_pcm

Samples = npt.NDArray[np.float32]
_STARTS, _CONTINUES = 0, 1


class AudioStreamEncoder:
    """Encodes the waveform of one device into payloads of frames.

    Args:
        encoding: one of `STREAMS`.
        rate: sample rate, Hz.
        window_samples, hop_samples: length of a window and distance between two.
        kbps: bit rate of Opus, kbit/s.

    Raises:
        UsageError: the encoding does not support the window or rate, or its library is missing.
    """

    def __init__(self, encoding: str, rate: int, window_samples: int, hop_samples: int, kbps: float) -> None:
        self.encoding = encoding
        self._rate, self._window, self._hop, self._kbps = rate, window_samples, hop_samples, kbps
        self._code = _encoder(encoding, rate, kbps)
        if encoding == "opus":
            packet_sizes(window_samples, rate)
            packet_sizes(min(hop_samples, window_samples), rate)
        self._last: int | None = None

    def encode(self, samples: Samples, index: int, alone: bool) -> bytes:
        """The payload of window `index` (samples,); `alone`: it may arrive at any time, so it must be self-contained.

        NaN becomes silence.
        """
        continues = not alone and self._last == index - 1 and self._hop <= self._window
        self._last = None if alone else index
        if not continues:
            self._code = _encoder(self.encoding, self._rate, self._kbps)
        clean = np.nan_to_num(np.clip(samples[-self._hop :] if continues else samples, -1.0, 1.0))
        return bytes((_CONTINUES if continues else _STARTS,)) + self._code(clean)

    def restart(self) -> None:
        """Start a new stream with the next window, because the decoder has lost this one."""
        self._last = None


class AudioStreamDecoder:
    """Turns payloads into windows; one for each stream. Takes frames in order, and the latest one again.

    An earlier window that does not continue another one, such as one from a spool, is decoded apart from the stream.
    """

    def __init__(self, encoding: str, rate: int, window_samples: int, hop_samples: int) -> None:
        """Raises UsageError if the encoding does not support the rate, or if its library is missing."""
        self._encoding, self._rate, self._hop = encoding, rate, hop_samples
        self._code = _decoder(encoding, rate)
        self._window = np.zeros(window_samples, np.float32)
        self._index: int | None = None

    def join(self, index: int) -> None:
        """Accept window `index` next although its predecessor is missing, as if silence had come before it."""
        if self._index != index - 1:
            self._code, self._index = _decoder(self._encoding, self._rate), index - 1
            self._window = np.zeros_like(self._window)

    def decode(self, payload: bytes, index: int) -> Samples:
        """Window `index`, (1, samples) float32. Raises FrameError for a frame that cannot be decoded."""
        if index == self._index:
            return self._window[None]
        if payload[:1] not in (b"\0", b"\1"):
            raise FrameError(f"audio of window {index}: its first byte marks neither a start nor a continuation")
        continues = payload[0] == _CONTINUES
        if continues and self._index != index - 1:
            raise FrameError(f"window {index} continues window {index - 1}, which did not arrive before it")
        code = self._code if continues else _decoder(self._encoding, self._rate)
        new = self._hop if continues else self._window.size
        is_newest = self._index is None or index > self._index
        if is_newest:
            self._index = None
        try:
            samples = code(payload[1:], new)
        except FormatError as exc:
            raise FrameError(f"audio of window {index}: {exc}") from None
        window = np.concatenate([self._window[new:], samples])
        if is_newest:
            self._code, self._window, self._index = code, window, index
        return window[None]


def _encoder(encoding: str, rate: int, kbps: float) -> Callable[[Samples], bytes]:
    """A function that encodes samples and keeps no state between calls."""
    if encoding == "opus":
        return OpusEncoder(rate, kbps).encode
    if encoding == "flac":
        return lambda samples: flac.encode(to_pcm(samples), rate)
    if encoding == "pcm16-stream":
        return lambda samples: to_pcm(samples).tobytes()
    raise _unknown(encoding)


def _decoder(encoding: str, rate: int) -> Callable[[bytes, int], Samples]:
    """A function that decodes bytes into a given number of samples; raises FormatError."""
    if encoding == "opus":
        return OpusDecoder(rate).decode
    if encoding == "flac":
        return lambda data, samples: from_pcm(flac.decode(data, samples, rate))
    if encoding == "pcm16-stream":
        return _plain
    raise _unknown(encoding)


def _unknown(encoding: str) -> UsageError:
    return UsageError(f"audio encoding {encoding!r}: expected one of {', '.join(STREAMS)}")


def _plain(data: bytes, samples: int) -> Samples:
    if len(data) != 2 * samples:
        raise FormatError(f"{len(data)} bytes of PCM, expected {2 * samples}")
    return from_pcm(np.frombuffer(data, "<i2"))
