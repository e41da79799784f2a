"""The page's data on a sound that a device reported: its spectrogram, its audio, and corrections.

What devices have sent as audio can be heard, for as long as the broker keeps it, and clips that devices keep and lend;
nothing is stored for the page. Runs on the server's event loop, and reads one sound at a time from the broker.
"""

from __future__ import annotations

import asyncio
import io
import math
import time
import wave
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.errors import UsageError
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.strict import Name
from runtime_server.labels.corrections import MAX_WINDOWS, Correction, Corrections
from runtime_server.labels.moments import Moment, audio_of
from runtime_server.labels.sent_windows import SentWindow
from runtime_server.suffix.frame_codecs import FrameCodecs
from runtime_server.telemetry.fleet import FleetEvent
from runtime_server.web.spectrogram import spectrogram

LONGEST_S = 10.0
"""Only this much from the beginning of a longer sound can be heard."""
MAX_LABEL = 80
_MAX_KNOWN = 128
"""Number of sounds whose pictures are cached."""
_SAME_S = 2.0
_MAX_FRAME_BYTES = 1 << 20
_NO_EVENT = "there is no such event any more; the page shows the last ones only"
_NOT_SENT = "its device kept it to itself, and lends no clip of it (--keep-clips, --lend-clips)"
_ACTIVATIONS = "its device sent activations, and lends no clip of it (--keep-clips, --lend-clips)"

Read = Callable[[Moment], Awaitable[list[SentWindow]]]


class Sounds:
    """The sounds behind a server's events.

    Args:
        events: the events that can be asked about, oldest first.
        read: returns what the broker has of a moment.
        borrow: returns the windows of the clip that a moment's device lends; empty if it lends none.
        front_end: defines the encoder's windows.
        codecs: returns the codecs that decode the waveform.
        corrections: where people's corrections are kept.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        events: Callable[[], Iterable[FleetEvent]],
        read: Read,
        borrow: Read,
        front_end: FrontEndInfo,
        codecs: Callable[[], FrameCodecs],
        corrections: Corrections,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._events, self._read, self._borrow, self._front_end, self._codecs = events, read, borrow, front_end, codecs
        self._corrections, self._clock = corrections, clock
        self._said: dict[tuple[str, str, float], dict[str, Any]] = {}
        self._read_at: object = None
        """What the corrections were when they were read."""
        self._look()
        self._pictures: OrderedDict[tuple[str, str, float, float], tuple[float, dict[str, Any]]] = OrderedDict()
        self._drawing: dict[tuple[str, str, float, float], asyncio.Lock] = {}
        self._one_by_one, self._writing = asyncio.Lock(), asyncio.Lock()

    async def look(self) -> None:
        """Read people's corrections again if others than this page have changed their files."""
        async with self._writing:
            await asyncio.to_thread(self._look)

    def _look(self) -> None:
        if (there := self._corrections.fingerprint) != self._read_at:
            self._said = {one.sound: _listed(one) for one in self._corrections.each()}
            self._read_at = there

    @property
    def corrections(self) -> list[dict[str, Any]]:
        """People's corrections, the latest first, without the windows."""
        return sorted(self._said.values(), key=lambda one: one["made_at"], reverse=True)

    def label_of(self, event: FleetEvent) -> str:
        """The label with which people corrected a sound; empty if nobody did."""
        said = self._said.get((event.device, event.label, event.since or 0.0))
        return "" if said is None else str(said["label"])

    async def picture(self, number: int) -> dict[str, Any]:
        """A spectrogram, or the reason why there is none. Raises UsageError for an unknown event, and LinkError."""
        event = self._event(number)
        moment = self._so_far(event)
        key = (event.device, event.label, moment.since, moment.until)
        async with self._drawing.setdefault(key, asyncio.Lock()):
            try:
                made_at, known = self._pictures.get(key, (0.0, None))
                # While more may arrive, pages that ask at nearly the same time get the same picture.
                # What is missing may come late, out of its device's spool.
                lasts_s = math.inf if known and "levels" in known and made_at - event.at > LONGEST_S else _SAME_S
                if known is not None and 0 <= self._clock() - made_at < lasts_s:
                    return known
                found = await self._drawn(moment)
                self._pictures[key] = self._clock(), found
                while len(self._pictures) > _MAX_KNOWN:
                    self._pictures.popitem(last=False)
            finally:
                self._drawing.pop(key, None)
        return found

    async def _drawn(self, moment: Moment) -> dict[str, Any]:
        windows, rate = await self._windows(moment), self._front_end.sample_rate
        samples = audio_of(windows, self._front_end, self._codecs())
        if not len(samples):
            return {"why": _ACTIVATIONS if windows else _NOT_SENT}
        return {"seconds": round(len(samples) / rate, 3), **await asyncio.to_thread(spectrogram, samples, rate)}

    async def _windows(self, moment: Moment) -> list[SentWindow]:
        """What was sent of a moment; if there is no audio in it, the clip that its device lends."""
        async with self._one_by_one:
            sent = await self._read(moment)
        return sent if any(window.is_audio for window in sent) else await self._borrow(moment) or sent

    async def audio(self, number: int) -> bytes:
        """A WAV file. Raises UsageError if there is no audio, and LinkError."""
        moment = self._so_far(self._event(number))
        windows = await self._windows(moment)
        samples = audio_of(windows, self._front_end, self._codecs())
        if not len(samples):
            raise UsageError(_ACTIVATIONS if windows else _NOT_SENT)
        return _wav(samples, self._front_end.sample_rate)

    async def correct(self, number: int, label: str | None) -> dict[str, Any]:
        """Keep a person's correction of a sound; None removes it. Raises UsageError and LinkError."""
        event = self._event(number)
        moment = self._moment(event)
        sound = event.device, event.label, moment.since
        if label is None:
            return await self.forget(*sound)
        name = _label(label)
        frames = [
            frame
            for window in await self._windows(moment)
            if window.whole and moment.has(window.header) and len(frame := window.frame) <= _MAX_FRAME_BYTES
        ]
        if not frames:
            raise UsageError(f"{_NOT_SENT}, so there is nothing to learn from")
        correction = Correction(
            device=event.device, since=moment.since, until=moment.until, heard=event.label, label=name,
            made_at=self._clock(), frames=frames[:: -(-len(frames) // MAX_WINDOWS)],
        )  # fmt: skip
        # Whoever asked may have given up; what is kept and what is listed are the same even then.
        return await asyncio.shield(self._keep(correction))

    async def forget(self, device: str, heard: str, since: float) -> dict[str, Any]:
        """Remove the correction of a sound whose event may be gone, as `corrections` lists it."""
        return await asyncio.shield(self._forget((device, heard, since)))

    async def _keep(self, correction: Correction) -> dict[str, Any]:
        def keep() -> None:
            self._look()
            self._corrections.keep(correction)
            self._said[correction.sound] = _listed(correction)
            self._read_at = self._corrections.fingerprint

        async with self._writing:
            await asyncio.to_thread(keep)
        return {"label": correction.label, "windows": len(correction.frames)}

    async def _forget(self, sound: tuple[str, str, float]) -> dict[str, Any]:
        def forget() -> None:
            self._look()
            self._corrections.forget(*sound)
            self._said.pop(sound, None)
            self._read_at = self._corrections.fingerprint

        async with self._writing:
            await asyncio.to_thread(forget)
        return {"label": "", "windows": 0}

    def _event(self, number: int) -> FleetEvent:
        for event in self._events():
            if event.number == number and event.kind in ("on", "off"):
                return event
        raise UsageError(_NO_EVENT)

    def _so_far(self, event: FleetEvent) -> Moment:
        """The moment of an event, extended by what has arrived since if its label is still on."""
        moment = self._moment(event)
        is_over = any(other.kind == "off" for other in self._of_same_sound(event))
        return moment if is_over else replace(moment, until=moment.since + LONGEST_S)

    def _moment(self, event: FleetEvent) -> Moment:
        """From when the label was first detected to when it was last detected, as far as that is known."""
        same = self._of_same_sound(event)
        since = event.since or 0.0
        until = min(max(other.time or 0.0 for other in same), since + LONGEST_S)
        # Of a long sound whose beginning was missed only the end was reported, that much later.
        told_at = min(other.at - max(0.0, (other.time or 0.0) - until) for other in same)
        return Moment(event.device, event.label, since, until, told_at)

    def _of_same_sound(self, event: FleetEvent) -> list[FleetEvent]:
        sound = event.device, event.label, event.since
        return [other for other in self._events() if (other.device, other.label, other.since) == sound]


def _listed(correction: Correction) -> dict[str, Any]:
    names = ("device", "since", "until", "heard", "label", "made_at")
    return {name: getattr(correction, name) for name in names} | {"windows": len(correction.frames)}


def _label(text: str) -> str:
    """A label in a form that heads accept. Raises UsageError."""
    label = " ".join(text.split())
    try:
        msgspec.convert(label, Name)
        label.encode()
    except (msgspec.ValidationError, UnicodeEncodeError):
        label = ""
    if not label or len(label) > MAX_LABEL:
        raise UsageError(f"a label has 1 to {MAX_LABEL} characters, all of them visible")
    return label


def _wav(samples: npt.NDArray[np.int16], rate: int) -> bytes:
    body = io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return body.getvalue()
