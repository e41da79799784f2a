"""Reassembles the streams of raw audio that devices send, with separate decoders for each device."""

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

MAX_STREAMS = 2
"""Per device: its current stream, and one of an earlier boot."""
_MAX_DEVICES = 4096

_Decoders = OrderedDict[tuple[str, str], AudioStreamDecoder]
"""Decoders by boot and encoding."""


class AudioStreams:
    """At most `MAX_STREAMS` streams of a device; the one continued longest ago is dropped first. For one thread."""

    def __init__(self) -> None:
        self._devices: OrderedDict[str, _Decoders] = OrderedDict()

    def activation(self, generation: Generation, arrival: Arrival) -> npt.NDArray[np.float32]:
        """The contents of a frame, (rows, ...), whether it belongs to a stream or stands alone. Raises FrameError."""
        header = arrival.header
        encoding = WIRE_ENCODINGS[header.encoding]
        if encoding not in STREAMS:
            return generation.decode(header, arrival.payload)
        if header.cut != 0:
            raise FrameError(f"frame of window {header.window}: cut {header.cut} as audio; only the waveform can be")
        own = self._devices.pop(arrival.device, None) or OrderedDict()
        self._devices[arrival.device] = own
        if len(self._devices) > _MAX_DEVICES:
            self._devices.popitem(last=False)
        key = arrival.boot, encoding
        try:
            decoder = own.pop(key, None) or _decoder(encoding, generation.bundle.manifest.info.front_end)
        except (UsageError, MissingExtra) as exc:
            raise FrameError(f"frame of window {header.window}: {exc}") from None
        own[key] = decoder
        if len(own) > MAX_STREAMS:
            own.popitem(last=False)
        return decoder.decode(arrival.payload, header.window)


def _decoder(encoding: str, front_end: FrontEndInfo) -> AudioStreamDecoder:
    return AudioStreamDecoder(encoding, front_end.sample_rate, front_end.window_samples, front_end.hop_samples)
