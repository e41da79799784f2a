"""Keeps a short recording of each sound whose label went on, in a directory of this device, up to a size limit.

    <directory>/rain/2026-11-30T14-15-00.250Z.flac

`ssc server label` reads one subfolder for each label, so clips that someone has checked can train a head. Nothing
leaves the device from here. Everything runs on the event loop, but files are written in a thread.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import io
import logging
import re
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.audio.file_decoder import soundfile_module
from runtime_edge.audio.files.folder import is_hidden
from runtime_edge.audio.windower import joined
from runtime_edge.base.files import write_atomic
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.label_switches import Change
from runtime_edge.errors import UsageError
from runtime_edge.formats.codec import to_pcm

_LOG = logging.getLogger(__name__)
MAX_CLIP_S = 10.0
"""Longest clip, s; of a longer sound the beginning is kept."""
AROUND_S = 0.5
"""Seconds kept before the first window in which a label was detected, and after the last one."""
_REMEMBERED_S = 25.0
"""How long after the start of a sound its label may go off, or an answer may come, s."""
_MAX_UNWRITTEN = 8
_NAME = "*/????-??-??T??-??-??.???Z.flac"
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f]')
"""Characters that some file system has in no name."""
_MAX_NAME_BYTES = 200
_LOST = "a clip of %s is not kept: %s"


class _Piece(msgspec.Struct, frozen=True):
    """Samples that no earlier piece holds."""

    begins_s: float
    ends_s: float
    """Capture time of its end, seconds since the epoch."""
    place: int
    """Position of its first sample on the source's time line."""
    samples: npt.NDArray[np.int16]


@dataclass
class _Sound:
    """A label that is on and has no clip yet."""

    label: str
    since: float
    begins_s: float


class ClipKeeper:
    """Remembers the latest audio, and writes it down for labels that go on.

    Args:
        directory: where clips are kept; created if missing.
        limit_bytes: limit for all clips there; the oldest make room.
        rate, window_samples, hop_samples: of the encoder's windows.
    """

    def __init__(self, directory: Path, limit_bytes: int, rate: int, window_samples: int, hop_samples: int) -> None:
        """Raises MissingExtra without soundfile, and UsageError if the directory cannot be created."""
        soundfile_module()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UsageError(f"keep_clips {directory}: cannot be made ({exc.strerror})") from None
        self._directory, self._limit = directory, limit_bytes
        self._rate, self._window, self._hop = rate, window_samples, hop_samples
        self._pieces: deque[_Piece] = deque(maxlen=int(_REMEMBERED_S * rate / min(hop_samples, window_samples)) + 2)
        self._last = -2
        """Index of the latest window."""
        self._sounds: dict[str, _Sound] = {}
        self._writing: set[asyncio.Future[None]] = set()
        self._room = threading.Lock()
        """Held from making room for a clip until it is there, so that clips written at once fit together."""

    def hear(self, window: CapturedWindow) -> None:
        """Remember a window; called before its result is known, in the order of windows."""
        new = self._hop if window.index == self._last + 1 and self._hop < self._window else self._window
        self._last = window.index
        ends_s = window.capture_time_ns / 1e9
        samples = to_pcm(window.samples[-new:])
        place = window.index * self._hop + self._window - new
        self._pieces.append(_Piece(ends_s - new / self._rate, ends_s, place, samples))
        for sound in [sound for sound in self._sounds.values() if ends_s >= sound.begins_s + MAX_CLIP_S]:
            self._keep(sound, sound.begins_s + MAX_CLIP_S)

    def changed(self, change: Change) -> None:
        """Handle a label that has gone on or off."""
        if change.event == "on":
            begins_s = change.since - self._window / self._rate - AROUND_S
            self._sounds[change.label] = _Sound(change.label, change.since, begins_s)
        elif (sound := self._sounds.get(change.label)) is not None:
            self._keep(sound, min(change.last + AROUND_S, sound.begins_s + MAX_CLIP_S))

    async def written(self) -> None:
        """Wait until all pending clips are written."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    def _keep(self, sound: _Sound, ends_s: float) -> None:
        del self._sounds[sound.label]
        pieces = [piece for piece in self._pieces if piece.ends_s > sound.begins_s and piece.begins_s < ends_s]
        if not pieces:
            _LOG.warning(_LOST, sound.label, "its audio is not remembered any more")
        elif len(self._writing) >= _MAX_UNWRITTEN:
            _LOG.warning(_LOST, sound.label, "the disk does not keep up")
        else:
            samples = joined([(piece.place, piece.samples) for piece in pieces], self._most)
            writing = asyncio.ensure_future(asyncio.to_thread(self._write, sound, pieces[0].begins_s, samples))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)

    @property
    def _most(self) -> int:
        """The most samples a clip can have."""
        return int((MAX_CLIP_S + 1.0) * self._rate) + self._window

    def _write(self, sound: _Sound, begins_s: float, samples: npt.NDArray[np.int16]) -> None:
        """Write one clip. Runs in a thread."""
        data = io.BytesIO()
        library = soundfile_module()
        with library.SoundFile(data, "w", self._rate, 1, "PCM_16", format="FLAC") as file:
            file.title, file.date = sound.label, recorded_at(begins_s)
            file.write(samples)
        body = data.getbuffer()
        try:
            if len(body) > self._limit:
                raise OSError(f"it is larger than keep_clips_mb allows, {len(body)} bytes")
            with self._room:
                make_room(self._directory, self._limit - len(body))
                path = clip_path(self._directory, sound.label, sound.since)
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, bytes(body), 0o600, durable=False)
        except OSError as exc:
            _LOG.warning(_LOST, sound.label, exc.strerror or exc)


def clip_keeper(config: DeviceConfig, rate: int, window_samples: int, hop_samples: int) -> ClipKeeper | None:
    """A device's clip keeper; None if no clips are to be kept.

    Raises UsageError with a privacy floor, which forbids keeping audio.
    """
    if config.keep_clips is None:
        return None
    if floor := config.privacy_floor:
        raise UsageError(f"keep_clips: keeps audio, which the privacy floor ({floor}) forbids; leave one of them out")
    limit = int(config.keep_clips_mb * (1 << 20))
    return ClipKeeper(config.keep_clips, limit, rate, window_samples, hop_samples)


def make_room(directory: Path, limit_bytes: int) -> None:
    """Remove the oldest clips until the rest fit; other files stay. Raises OSError."""
    clips = sorted(directory.glob(_NAME), key=lambda path: path.name, reverse=True)
    left = limit_bytes
    for path in clips:
        left -= path.stat().st_size
        if left < 0:
            path.unlink()


def folder_of(label: str) -> str:
    """The name of a label's folder, which no other label has: the label itself, wherever that can name a folder.

    Otherwise "-" replaces the forbidden characters, and a part of the label's SHA-256 is added. So it is with a label
    that ends like such a name, and with one whose folder `ssc server label` would take for a hidden one.
    """
    name = _FORBIDDEN.sub("-", label).rstrip(" .")
    fits = len(name.encode()) <= _MAX_NAME_BYTES
    if name == label and name and fits and not is_hidden(name) and not re.search("-[0-9a-f]{8}$", name):
        return name
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    start = name.lstrip(".~").encode()[: _MAX_NAME_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{start}-{digest}"


def clip_path(directory: Path, label: str, since: float) -> Path:
    """The file of the clip of a label that was first detected at `since`, s since 1970."""
    return directory / folder_of(label) / f"{recorded_at(since).replace(':', '-')}.flac"


def recorded_at(since: float) -> str:
    """A time in s since 1970 as in a clip's `date` tag, which has that of its first sample: to the millisecond, UTC."""
    return dt.datetime.fromtimestamp(since, dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
