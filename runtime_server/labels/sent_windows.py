"""Windows that devices have sent, read again from the broker's stream; each stands alone, whatever its encoding.

A frame in a stream of audio carries only the new part of its window. Here such windows are reassembled and encoded as
PCM16, so that a frame can be read later without the others. Reading may start anywhere: the first windows of a stream
that is entered in the middle are then only partly known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nats.aio.msg import Msg

from runtime_edge.audio.wire_streams import AudioStreamDecoder
from runtime_edge.errors import FrameError, SscError
from runtime_edge.formats import subjects
from runtime_edge.formats.codec import STREAMS
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.wire import WIRE_ENCODINGS, FrameHeader, decode_frame, encode_frame

_PCM16 = WIRE_ENCODINGS.index("pcm16")
_MAX_STREAMS = 4
"""Per device: the stream continued longest ago is dropped first."""
_CONTINUES = b"\1"


@dataclass(frozen=True)
class SentWindow:
    """One window as a frame of its own."""

    boot: str
    """The boot id of the device's run."""
    header: FrameHeader
    payload: bytes
    known: int | None = None
    """How many samples at its end are known; None: all that was sent."""

    @property
    def whole(self) -> bool:
        """Whether no part of it is missing."""
        return self.known is None

    @property
    def is_audio(self) -> bool:
        """Whether it is a waveform."""
        return self.header.cut == 0

    @property
    def frame(self) -> bytes:
        """The window as a frame of its own, as a device would send it."""
        header = self.header
        return encode_frame(
            header.window, header.capture_ns, header.generation, header.cut, WIRE_ENCODINGS[header.encoding],
            header.compressed, header.uncertainty, self.payload, header.model, header.width,
        )  # fmt: skip


class SentWindows:
    """Reads the messages of one device in the order of the stream.

    Args:
        front_end: defines the length of windows.
        near: which windows of audio streams to decode; a window is whole only if the ones it continues are among them.
    """

    def __init__(self, front_end: FrontEndInfo, near: Callable[[FrameHeader], bool]) -> None:
        self._front_end, self._near = front_end, near
        self._streams: dict[tuple[str, str], tuple[AudioStreamDecoder, int, int]] = {}
        """By boot and encoding: a decoder, its latest window, and how many samples of that are known."""

    def of(self, message: Msg) -> list[SentWindow]:
        """The windows of a message; none if it cannot be read."""
        try:
            windows = decode_frame(message.data)
        except FrameError:
            return []
        device = message.subject.rpartition(".")[2]
        identity = subjects.read_envelope(message.headers, message.subject).message_id
        boot = identity[len(device) + 1 :].partition(".")[0]
        found = [self._window(boot, header, payload) for header, payload in windows]
        return [window for window in found if window is not None]

    def _window(self, boot: str, header: FrameHeader, payload: bytes) -> SentWindow | None:
        encoding = WIRE_ENCODINGS[header.encoding]
        if encoding not in STREAMS:
            return SentWindow(boot, header, payload)
        if header.cut != 0 or not self._near(header):
            return None
        try:
            samples, known = self._decoded(boot, encoding, header.window, payload)
        except SscError:  # damaged, or its library is missing
            return None
        pcm = np.rint(samples * 32767).clip(-32768, 32767).astype("<i2").tobytes()
        missing = None if known == len(samples) else known
        return SentWindow(boot, header._replace(encoding=_PCM16, compressed=False), pcm, missing)

    def _decoded(self, boot: str, encoding: str, index: int, payload: bytes) -> tuple[npt.NDArray[np.float32], int]:
        """The samples of a window of a stream, and how many at its end are known. Raises FrameError and UsageError."""
        end, key = self._front_end, (boot, encoding)
        if key not in self._streams:
            new = AudioStreamDecoder(encoding, end.sample_rate, end.window_samples, end.hop_samples)
            self._streams[key] = new, -2, 0
        decoder, last, known = self._streams.pop(key)
        own, goes_on = end.window_samples, payload[:1] == _CONTINUES
        if goes_on and index != last:
            if index != last + 1:
                decoder.join(index)
                known = 0
            known, last = min(own, known + end.hop_samples), index
        elif index > last:
            known, last = own, index
        samples = decoder.decode(payload, index)[0]  # a stream that fails here starts over
        self._streams[key] = decoder, last, known
        while len(self._streams) > _MAX_STREAMS:
            del self._streams[next(iter(self._streams))]
        return samples, known if goes_on else own
