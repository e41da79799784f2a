"""Prices the waveform as a stream in a table: bytes per window as PCM, FLAC or Opus, and the agreement lost to Opus.

A device that ships the waveform as a stream (`--audio`) sends only the part of each window that is new since the last.
Bytes are medians over continuous audio, after the first window. FLAC and PCM lose nothing; for Opus, the embedding of
the decoded audio is compared with that of the original window. Encoding time is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.audio.wire_streams import AudioStreamDecoder, AudioStreamEncoder
from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.codec import STREAMS
from runtime_edge.formats.records.actions import ActionCosts, Encoding
from runtime_edge.formats.wire import MAX_HEADER_BYTES
from runtime_edge.inference.prefix import Prefix

Samples = npt.NDArray[np.float32]


def with_stream(
    actions: Sequence[ActionCosts], bundle: Bundle, encoding: Encoding, kbps: float, waveform: Samples
) -> list[ActionCosts]:
    """The same actions with the waveform as a stream. `waveform` (samples,): some windows, at the encoder's rate.

    Raises UsageError if this encoder's windows cannot be sent as such a stream, or if its library is missing.
    """
    if encoding not in STREAMS:
        return list(actions)
    front_end = bundle.manifest.info.front_end
    shape = front_end.sample_rate, front_end.window_samples, front_end.hop_samples
    starts = range(0, waveform.size - front_end.window_samples + 1, front_end.hop_samples)
    windows = [waveform[start : start + front_end.window_samples] for start in starts]
    if len(windows) < 3:
        raise UsageError(f"--audio-format {encoding}: {len(windows)} windows of audio are too few to measure a stream")
    encoder = AudioStreamEncoder(encoding, *shape, kbps)
    payloads = [encoder.encode(window, index, alone=False) for index, window in enumerate(windows)]
    size = round(float(np.median([len(payload) for payload in payloads[1:]])))
    quality = actions[0].quality
    if encoding == "opus":
        decoder, prefix = AudioStreamDecoder(encoding, *shape), Prefix(bundle)
        heard = [decoder.decode(payload, index)[0] for index, payload in enumerate(payloads)]
        agreement = [prefix.embed(window) @ prefix.embed(other) for window, other in zip(windows, heard, strict=True)]
        quality = (round(float(np.clip(np.median(agreement), -1.0, 1.0)), 6),)
    raw = msgspec.structs.replace(actions[0], encoding=encoding, bytes=size + MAX_HEADER_BYTES, quality=quality)
    return [raw, *actions[1:]]
