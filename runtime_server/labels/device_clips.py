"""Clips that devices keep and lend, fetched when somebody wants to hear them.

A device is asked for one piece after the other, so a slow link is never occupied for long. One that has no such clip,
lends none or is not connected is known at once: the broker says that nobody listens.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import secrets
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
from nats.aio.msg import Msg

from runtime_edge.audio.file_decoder import soundfile_module
from runtime_edge.base.aio import within
from runtime_edge.base.broker_errors import BROKER_ERRORS
from runtime_edge.errors import FormatError
from runtime_edge.formats import subjects
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.records.clip import ClipPiece, ClipRequest
from runtime_edge.formats.wire import NO_MODEL, WIRE_ENCODINGS, FrameHeader
from runtime_server.broker.hub import Hub
from runtime_server.labels.moments import MAX_AUDIO_S, Moment
from runtime_server.labels.sent_windows import SentWindow

PIECE_S, _CLIP_S = 5.0, 60.0
"""Limits on the time for one piece and for a clip, s."""
_MAX_REMEMBERED = 8
"""Fetched clips that are remembered: a page asks for the picture first and for the audio next."""
_MAX_DEVICES = 256
_UNREAD = 4
_PCM16 = WIRE_ENCODINGS.index("pcm16")


class DeviceClips:
    """Fetches clips of all devices, one at a time from each."""

    def __init__(self, hub: Hub, front_end: FrontEndInfo) -> None:
        self._hub, self._front_end = hub, front_end
        self._known: OrderedDict[tuple[str, str, float], bytes] = OrderedDict()
        self._busy: OrderedDict[str, asyncio.Lock] = OrderedDict()

    async def windows(self, moment: Moment) -> list[SentWindow]:
        """The windows of the clip of a moment, as audio; empty if its device does not lend one."""
        key = moment.device, moment.label, moment.since
        busy = self._busy.setdefault(moment.device, asyncio.Lock())
        self._busy.move_to_end(moment.device)
        while len(self._busy) > _MAX_DEVICES:
            self._busy.popitem(last=False)
        async with busy:
            clip = self._known.get(key) or await self.fetched(moment)
        if clip:
            self._known[key] = clip
            while len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)
        return await asyncio.to_thread(windows_of_clip, clip, self._front_end) if clip else []

    async def fetched(self, moment: Moment) -> bytes:
        """The clip's file; empty if it does not come."""
        try:
            return await within(self._pieces(moment), _CLIP_S)
        except (*BROKER_ERRORS, FormatError):
            return b""

    async def _pieces(self, moment: Moment) -> bytes:
        client, asked, clip = self._hub.client, secrets.token_hex(8), bytearray()
        arrived = asyncio.Queue[Msg](_UNREAD)

        async def keep(message: Msg) -> None:
            if not arrived.full():  # a device may send more than it was asked for
                arrived.put_nowait(message)

        nobody = client.new_inbox()
        subscriptions = [
            await client.subscribe(subject, cb=keep, pending_msgs_limit=2 * _UNREAD)
            for subject in (subjects.clips(moment.device), nobody)
        ]
        try:
            while True:
                request = ClipRequest(asked=asked, label=moment.label, since=moment.since, offset=len(clip))
                await client.publish(subjects.clip_requests(moment.device), request.encode(), reply=nobody)
                piece = await within(_piece(arrived, nobody, asked, len(clip)), PIECE_S)
                if piece is None:
                    return b""
                clip += piece.data
                if len(clip) >= piece.size:
                    return bytes(clip)
        finally:
            for subscription in subscriptions:
                await subscription.unsubscribe()


async def _piece(arrived: asyncio.Queue[Msg], nobody: str, asked: str, offset: int) -> ClipPiece | None:
    """The next piece; None if nobody listens. Raises FormatError if it is damaged."""
    while True:
        message = await arrived.get()
        if message.subject == nobody:
            return None
        piece = ClipPiece.decode(message.data)
        if (piece.asked, piece.offset) == (asked, offset):
            return piece


def windows_of_clip(clip: bytes, front_end: FrontEndInfo) -> list[SentWindow]:
    """The windows of a clip as frames of 16-bit audio.

    Args:
        clip: a FLAC file whose `date` tag has the time of its first sample.
        front_end: defines the windows.

    Returns the windows in order; none if the clip is damaged or of another sample rate. Raises MissingExtra.
    """
    rate, window, hop = front_end.sample_rate, front_end.window_samples, front_end.hop_samples
    samples, began = _read(clip, rate)
    found = []
    for number, start in enumerate(range(0, len(samples) - window + 1, hop)):
        capture_ns = int((began + (start + window) / rate) * 1e9)
        header = FrameHeader(number, capture_ns, 0, 0, _PCM16, False, 0.0, 0, NO_MODEL)
        found.append(SentWindow("clip", header, samples[start : start + window].tobytes()))
    return found


def _read(clip: bytes, rate: int) -> tuple[npt.NDArray[np.int16], float]:
    """A clip's samples, and when it began in s since 1970; no samples if it is damaged."""
    library = soundfile_module()
    nothing = np.zeros(0, np.int16)
    try:
        with library.SoundFile(io.BytesIO(clip)) as file:
            if (file.format, file.samplerate, file.channels) != ("FLAC", rate, 1):
                return nothing, 0.0
            began = dt.datetime.fromisoformat(file.date.replace("Z", "+00:00")).timestamp()
            return file.read(int(MAX_AUDIO_S * rate), dtype="int16"), began
    except (library.LibsndfileError, ValueError, OverflowError):
        return nothing, 0.0
