"""Windows that devices have sent, read again from the broker's stream; each stands alone, whatever its encoding.

A frame in a stream of audio carries only the new part of its window. Here such windows are reassembled and encoded as
PCM16, so that a frame can be read later without the others. Reading may start anywhere: the first windows of a stream
that is entered in the middle are then only partly known.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import datetime

import nats.errors
import numpy as np
import numpy.typing as npt
from nats.aio.msg import Msg

from runtime_edge.audio.wire_streams import AudioStreamDecoder
from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.errors import FrameError, LinkError, SscError
from runtime_edge.formats import subjects
from runtime_edge.formats.codec import STREAMS, to_pcm
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.wire import WIRE_ENCODINGS, FrameHeader, decode_frame, encode_frame
from runtime_server.broker.hub import Hub
from runtime_server.broker.stored_frames import stored_frames

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


@dataclass(frozen=True)
class SentBatch:
    """What some messages of a device hold."""

    messages: int
    size: int
    """Bytes."""
    ends_s: list[float]
    """Capture times of all their windows, also of those that are not near, s since 1970."""
    windows: list[SentWindow]


async def sent_windows(
    hub: Hub, device: str, since: datetime, front_end: FrontEndInfo, near: Callable[[FrameHeader], bool], fetch: int
) -> AsyncGenerator[SentBatch, None]:
    """The windows that a device has sent since a time, `fetch` messages at once.

    Close it when done (`contextlib.aclosing`). Raises LinkError.
    """
    sent = SentWindows(front_end, near)
    try:
        async with contextlib.aclosing(stored_frames(hub, subjects.frames(device), since, fetch)) as batches:
            async for messages in batches:
                windows = [window for message in messages for window in sent.of(message)]
                yield SentBatch(len(messages), sum(len(message.data) for message in messages), sent.ends_s, windows)
                sent.ends_s = []
    except (*BROKER_ERRORS, nats.errors.Error) as exc:
        raise LinkError(f"broker {hub.url}: cannot read what {device} sent ({reason(exc)})") from None


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
        self.ends_s: list[float] = []
        """Capture times of the windows read so far, s since 1970; whoever reads them may start a new list."""

    def of(self, message: Msg) -> list[SentWindow]:
        """The windows of a message; none if it cannot be read."""
        try:
            windows = decode_frame(message.data)
        except FrameError:
            return []
        device = message.subject.rpartition(".")[2]
        identity = subjects.read_envelope(message.headers, message.subject).message_id
        boot = identity[len(device) + 1 :].partition(".")[0]
        self.ends_s += [header.capture_ns / 1e9 for header, _ in windows]
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
        pcm = to_pcm(samples).tobytes()
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
