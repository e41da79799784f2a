"""A moment that a device reported, and those of its windows that are still in the broker's stream."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt

from runtime_edge.audio.windower import joined
from runtime_edge.errors import FormatError
from runtime_edge.formats.codec import to_pcm
from runtime_edge.formats.manifest import FrontEndInfo
from runtime_edge.formats.wire import FrameHeader
from runtime_server.broker.hub import Hub
from runtime_server.labels.sent_windows import SentWindow, sent_windows
from runtime_server.suffix.frame_codecs import FrameCodecs

AROUND_S = 0.5
"""Margin before and after the requested time."""
_EARLY_S = 20.0
"""The broker may store a frame this long before the report about its sound arrives."""
_MAX_MESSAGES, _MAX_BYTES = 4096, 64 << 20
"""How much is searched; what a device sends beyond that in a moment is ignored."""
_LATE_S = 60.0
"""If nothing is found, windows this much later end the search, s."""
_FETCH = 16
MAX_AUDIO_S = 12.0
"""The longest audio of a moment, not counting its first window."""


@dataclass(frozen=True)
class Moment:
    """Windows of a device with a label: they ended between `since` and `until`, by its clock, s since 1970."""

    device: str
    label: str
    since: float
    until: float
    told_at: float
    """When it was reported, by the server's clock."""

    def has(self, header: FrameHeader, around_s: float = 0.0) -> bool:
        """Whether a window is in the moment, or within `around_s` of it."""
        return self.since - around_s - 1e-3 <= header.capture_ns / 1e9 <= self.until + around_s + 1e-3


async def sent_at(hub: Hub, moment: Moment, front_end: FrontEndInfo) -> list[SentWindow]:
    """The windows that the device sent within half a second of a moment, in order. Raises LinkError."""
    window_s = front_end.window_samples / front_end.sample_rate
    found: dict[tuple[str, int], SentWindow] = {}
    start = datetime.fromtimestamp(moment.told_at - (moment.until - moment.since) - _EARLY_S, timezone.utc)
    near = functools.partial(moment.has, around_s=AROUND_S + 2 * window_s)
    read = size = 0
    async with contextlib.aclosing(sent_windows(hub, moment.device, start, front_end, near, _FETCH)) as batches:
        async for batch in batches:
            kept = (window for window in batch.windows if moment.has(window.header, AROUND_S))
            found |= {(window.boot, window.header.window): window for window in kept}
            read, size = read + batch.messages, size + batch.size
            # Until something is found frames of a spool may still come, some of them between live ones.
            over_s = moment.until + (AROUND_S if found else _LATE_S)
            is_over = bool(batch.ends_s) and min(batch.ends_s) > over_s
            if is_over or read >= _MAX_MESSAGES or size >= _MAX_BYTES:
                break
    return sorted(found.values(), key=lambda window: (window.header.capture_ns, window.header.window))


def audio_of(windows: Sequence[SentWindow], front_end: FrontEndInfo, codecs: FrameCodecs) -> npt.NDArray[np.int16]:
    """The audio among windows of one device, (samples,), with silence for missing windows; empty if there is none."""
    pieces = []
    runs = [window.boot for window in windows if window.is_audio]
    for window in windows:
        if not window.is_audio or window.boot != runs[-1]:
            continue
        with contextlib.suppress(FormatError):
            samples = codecs.decode(window.header, window.payload)[0][-(window.known or front_end.window_samples) :]
            place = window.header.window * front_end.hop_samples + front_end.window_samples - len(samples)
            pieces.append((place, to_pcm(samples)))
    return joined(pieces, int(MAX_AUDIO_S * front_end.sample_rate) + front_end.window_samples)
