"""Audio files, decoded to the last sample that is there. The only file that imports soundfile."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.audio_block import Counters, Recording
from runtime_edge.audio.files.containers import Container, PatchedFile, examine
from runtime_edge.audio.files.folder import audio_files
from runtime_edge.audio.files.recognise import recognised
from runtime_edge.audio.files.recorded_time import began
from runtime_edge.audio.stream import BLOCK_SECONDS, SourceAudio
from runtime_edge.base.text import shown
from runtime_edge.errors import MissingExtra, SourceError

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_CHANNELS = 64

_LOG = logging.getLogger(__name__)
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's answer for a FLAC written to a pipe is near 2**63
_READ_VALUES = 1 << 16
_HEAD_BYTES = 1 << 12
_OPENING = re.compile(r"^Error opening .*?': (?=\S)")
_NO_FILE = "File does not exist"
_MPEG_FRAME = 1_152
"""Samples of an MP3 read at once: from a read that meets the place where a file breaks off, libsndfile gives none."""


class Faults:
    """What is wrong with the files of a source; each fault is reported once, however often a file is played."""

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = Counters() if counters is None else counters
        self._told: set[Path] = set()

    def skipped(self, path: Path, reason: SourceError) -> None:
        """Nothing of this file could be read."""
        if self._first(path):
            self._counters.files_skipped += 1
            _LOG.warning("skipped: %s", reason)

    def cut_short(self, path: Path, reason: str) -> None:
        """The file was not read to its end, or states a length other than its own."""
        if self._first(path):
            self._counters.files_cut_short += 1
            _LOG.warning("%s: %s", shown(path), reason)

    def _first(self, path: Path) -> bool:
        first = path not in self._told
        self._told.add(path)
        return first


def read_file(
    path: Path, block_s: float = BLOCK_SECONDS, faults: Faults | None = None, least_channels: int = 1
) -> Iterator[SourceAudio]:
    """Decode one file in blocks of `block_s` seconds; memory does not grow with its length.

    The file is read as far as possible, whatever length it states. If the two differ, or if damage ends the file early,
    this is recorded in `faults`.

    Raises:
        SourceError: not audio, fewer channels than `least_channels`, or no sample in it that can be read.
        MissingExtra: soundfile is not installed.
    """
    faults = Faults() if faults is None else faults
    with _opened(path, in_order=True) as (file, container):
        _check_header(path, file, container, least_channels)
        size = max(1, round(file.samplerate * block_s))
        # A call into libsndfile costs as much as processing a few thousand samples, so several blocks are read at once.
        at_once = size * max(1, _READ_VALUES // (size * file.channels))
        done, damage = 0, None
        recording = Recording(shown(path), began(path, file.comment))
        try:
            for frames in _decoded(file, at_once):
                if container.wrong is not None:  # for a long recording, reporting this only at its end would be late
                    faults.cut_short(path, f"{container.wrong}: cut short or never closed, read to its end")
                for start in range(0, len(frames), size):
                    yield SourceAudio(
                        frames[start : start + size], file.samplerate, done + start == 0, recording=recording
                    )
                done += len(frames)
        except soundfile_module().SoundFileError as exc:
            damage = " ".join(str(exc).split())
        if not done:
            raise _nothing_in(path, damage)
        if fault := _fault(file, container, done, damage):
            faults.cut_short(path, fault)


def _decoded(file: Any, at_once: int) -> Iterator[NDArray[np.float32]]:
    """float32[n, channels] with n from 1 to `at_once`. Raises SoundFileError after the last good frame."""
    done, step = 0, _MPEG_FRAME if file.format == "MP3" else at_once
    while True:
        frames, got = np.empty((at_once, file.channels), np.float32), 0
        try:
            while got < at_once and (count := len(file.read(out=frames[got : got + step]))):
                got += count
        except soundfile_module().SoundFileError:
            if (good := max(got, file.tell() - done)) > 0:
                yield frames[:good]
            raise
        if not got:
            return
        yield frames[:got]
        done += got


def _fault(file: Any, container: Container, done: int, damage: str | None) -> str | None:
    """What was wrong, in words, with a file that was read to its end; None if nothing."""
    stated = container.frames if container.frames is not None else file.frames
    rate = file.samplerate
    if damage is not None:
        return f"damaged after {done / rate:.1f} s ({damage}): what follows is not read"
    if container.unread is not None:
        return container.unread
    if container.wrong is None and not container.decode_for_length and stated < _UNKNOWN_FRAMES and stated != done:
        return f"its header states {stated / rate:.3f} s, and {done / rate:.3f} s could be read"
    return None


@contextlib.contextmanager
def _opened(path: Path, in_order: bool = False) -> Iterator[tuple[Any, Container]]:
    """The file opened in libsndfile, and its examined container; errors that damage causes there become SourceError.

    `in_order`: the file is read from beginning to end; then even a FLAC without a stated length can be read.
    """
    soundfile = soundfile_module()
    try:
        container = examine(path)
        patches = container.patches if in_order or container.frames is None else {}
        with contextlib.ExitStack() as closing:
            source: Any = os.fsencode(path)
            if patches or container.open_end or container.end is not None:
                source = closing.enter_context(PatchedFile(path, patches, container.open_end, container.end))
            file = closing.enter_context(soundfile.SoundFile(source))
            if in_order:
                # soundfile seeks after each read if it can, which fails at the end of a FLAC without a stated length.
                file.seekable = bool
            yield file, container
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as exc:
        raise SourceError(
            f"{shown(path)}: cannot be decoded ({_reason(path, exc)}): give an audio file such as WAV, FLAC, Ogg or MP3"
        ) from exc


def _reason(path: Path, exc: Exception) -> str:
    """What is wrong with a file, and what kind of file it seems to be."""
    if path.is_symlink() and not path.exists():
        return f"a link to {shown(path.readlink())}, which is not there"
    reason = _OPENING.sub("", " ".join(str(exc).split()))
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            return "it is empty"
        if _NO_FILE in reason:  # libsndfile's answer for an MP3 without a whole frame
            reason = "too little of it is there"
        kind = recognised(head)
        return reason if kind is None else f"it holds {kind}: {reason}"
    return reason


def recording_length(path: Path) -> tuple[int, int]:
    """Frames and sample rate (Hz) of one file: from its header, or by decoding it if the header does not say.

    Raises:
        SourceError: not audio, or no sample in it.
        MissingExtra: soundfile is not installed.
    """
    with _opened(path) as (file, container):
        _check_header(path, file, container)
        if file.seekable() and file.frames < _UNKNOWN_FRAMES and not container.decode_for_length:
            return int(file.frames), int(file.samplerate)
    return readable_length(path)


def readable_length(path: Path) -> tuple[int, int]:
    """Frames and sample rate (Hz) of one file, as far as it can be decoded; decodes the whole file.

    Raises:
        SourceError: not audio, or no sample in it that can be read.
        MissingExtra: soundfile is not installed.
    """
    frames = rate = 0
    for raw in read_file(path):
        frames, rate = frames + len(raw.frames), raw.rate_hz
    return frames, rate


def read_span(path: Path, start: int, stop: int) -> NDArray[np.float32]:
    """Frames [start, stop) of one file: float32[n, channels]; memory does not grow with its length.

    Raises:
        SourceError: the file is damaged there.
        MissingExtra: soundfile is not installed.
    """
    with _opened(path) as (file, container):
        if container.frames is not None or (file.frames < _UNKNOWN_FRAMES and not container.decode_for_length):
            file.seek(start)
            frames: NDArray[np.float32] = file.read(stop - start, dtype="float32", always_2d=True)
            if len(frames) == stop - start:
                return frames
            raise SourceError(f"{shown(path)}: cut short at frame {start + len(frames)}: copy or record it again")
    parts, position = [], 0
    for raw in read_file(path):
        parts.append(raw.frames[max(0, start - position) : max(0, stop - position)])
        position += len(raw.frames)
        if position >= stop:
            break
    return np.concatenate(parts)


def read_directory(
    directory: Path, loop: bool, counters: Counters, block_s: float = BLOCK_SECONDS, least_channels: int = 1
) -> Iterator[SourceAudio]:
    """Decode every audio file below `directory`, one after the other, as far as each can be read.

    A file that gives no audio is skipped, logged and counted, once.

    Raises:
        SourceError: there is no audio file, or none that can be read.
    """
    paths, faults = audio_files(directory), Faults(counters)
    while True:
        delivered = False
        for path in paths:
            try:
                for raw in read_file(path, block_s, faults, least_channels):
                    delivered = True
                    yield raw
            except SourceError as exc:
                faults.skipped(path, exc)
        if not delivered:
            raise SourceError(f"{shown(directory)}: none of its {len(paths)} audio files can be read, see the log")
        if not loop:
            return


def read_again_and_again(
    path: Path, counters: Counters, block_s: float = BLOCK_SECONDS, least_channels: int = 1
) -> Iterator[SourceAudio]:
    """Decode one file over and over, for ever. Raises as `read_file` does."""
    faults = Faults(counters)
    while True:
        yield from read_file(path, block_s, faults, least_channels)


def _nothing_in(path: Path, why: str | None) -> SourceError:
    return SourceError(f"{shown(path)}: holds no audio sample{f' ({why})' if why else ''}: record it again")


def _check_header(path: Path, file: Any, container: Container, least_channels: int = 1) -> None:
    """Refuse an impossible header."""
    if file.channels < least_channels:
        raise SourceError(f"{shown(path)}: {file.channels} channels: there is no channel {least_channels}")
    if file.frames == 0:
        raise _nothing_in(path, container.wrong)
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
        raise SourceError(
            f"{shown(path)}: {file.samplerate} Hz, outside {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz: convert it first"
        )
    if file.channels > MAX_CHANNELS:
        raise SourceError(f"{shown(path)}: {file.channels} channels, more than {MAX_CHANNELS}: mix it down first")


def soundfile_module() -> Any:
    """The soundfile library. Raises MissingExtra or SourceError if it is missing."""
    try:
        import soundfile
    except ImportError as exc:
        raise MissingExtra("soundfile", "audio") from exc
    except OSError as exc:
        raise SourceError("the library libsndfile is missing: install it (Debian: apt install libsndfile1)") from exc
    return soundfile
