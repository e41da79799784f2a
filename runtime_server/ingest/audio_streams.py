"""The streams of raw audio that devices send, put together again: one decoder for each device."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from runtime_edge.audio.wire_streams import AudioStreamDecoder
from runtime_edge.errors import FrameError, MissingExtra, UsageError
from runtime_edge.formats.codec import STREAMS
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.wire import WIRE_ENCODINGS
from runtime_server.ingest.arrival import Arrival
from runtime_server.suffix.generations import Generation

_MAX_STREAMS = 4096


class AudioStreams:
    """Used by one thread. The stream of a device that has been silent for longest is forgotten first."""

    def __init__(self) -> None:
        self._decoders: OrderedDict[tuple[str, str, str], AudioStreamDecoder] = OrderedDict()

    def activation(self, generation: Generation, arrival: Arrival) -> npt.NDArray[np.float32]:
        """What a frame holds, (rows, ...), be it of a stream or complete in itself. Raises FrameError."""
        header = arrival.header
        encoding = WIRE_ENCODINGS[header.encoding]
        if encoding not in STREAMS:
            return generation.decode(header, arrival.payload)
        if header.cut != 0:
            raise FrameError(f"frame of window {header.window}: cut {header.cut} as audio; only the waveform can be")
        key = arrival.device, arrival.boot, encoding
        try:
            decoder = self._decoders.pop(key, None) or _decoder(encoding, generation.bundle.manifest.info.front_end)
        except (UsageError, MissingExtra) as exc:
            raise FrameError(f"frame of window {header.window}: {exc}") from None
        self._decoders[key] = decoder
        if len(self._decoders) > _MAX_STREAMS:
            self._decoders.popitem(last=False)
        return decoder.decode(arrival.payload, header.window)


def _decoder(encoding: str, front_end: FrontEndInfo) -> AudioStreamDecoder:
    return AudioStreamDecoder(encoding, front_end.sample_rate, front_end.window_samples, front_end.hop_samples)
