"""Audio files. The only file that imports soundfile."""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.block import Counters
from runtime_edge.audio.stream import BLOCK_SECONDS, SourceAudio
from runtime_edge.errors import MissingExtra, SourceError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_CHANNELS = 64

_LOG = logging.getLogger(__name__)
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's answer for a FLAC written to a pipe is near 2**63
_UNKNOWN_WAV_BYTES = 0x7FFF0000  # programs that write WAV to a pipe put a length near 2**31 or 2**32
_MAX_WAV_CHUNKS = 1_000
_READ_VALUES = 1 << 16


def audio_files(directory: Path) -> list[Path]:
    """All .wav, .flac and .ogg files below `directory`, sorted by path.

    Raises:
        SourceError: there is none.
    """
    paths = (path for path in directory.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    found = sorted((path for path in paths if path.is_file()), key=lambda path: path.as_posix())
    if not found:
        kinds = ", ".join(AUDIO_SUFFIXES)
        raise SourceError(f"{directory}: no audio file in this directory (looked for {kinds} at any depth)")
    return found


def read_file(path: Path, block_s: float = BLOCK_SECONDS) -> Iterator[SourceAudio]:
    """Decode one file in blocks of `block_s` seconds; memory does not grow with its length.

    Raises:
        SourceError: not audio, no sample in it, cut short, or damaged. A length that does not hold is noticed
            before the first block, damage in the middle when it is reached.
        MissingExtra: soundfile is not installed.
    """
    with _opened(path) as file:
        _check(path, file)
        size = max(1, round(file.samplerate * block_s))
        starts, name = True, str(path)
        # A call into libsndfile costs as much as some thousand samples: several blocks at once.
        at_once = size * max(1, _READ_VALUES // (size * file.channels))
        while len(frames := file.read(at_once, dtype="float32", always_2d=True)):
            for start in range(0, len(frames), size):
                yield SourceAudio(frames[start : start + size], file.samplerate, starts, file=name)
                starts = False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file in libsndfile; whatever that makes of damage becomes a SourceError."""
    soundfile = soundfile_module()
    try:
        with soundfile.SoundFile(str(path)) as file:
            yield file
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as exc:
        reason = " ".join(str(exc).split())
        raise SourceError(f"{path}: cannot be decoded ({reason}): give a whole WAV, FLAC or Ogg file") from exc


def recording_length(path: Path) -> tuple[int, int]:
    """Frames and sample rate (Hz) by the header of one file, nothing decoded.

    Raises:
        SourceError: not audio, no sample in it, cut short, or without a length.
        MissingExtra: soundfile is not installed.
    """
    with _opened(path) as file:
        _check_header(path, file)
        if not file.seekable() or file.frames >= _UNKNOWN_FRAMES:
            raise SourceError(f"{path}: does not say how long it is: convert it first")
        return int(file.frames), int(file.samplerate)


def read_span(path: Path, start: int, stop: int) -> NDArray[np.float32]:
    """Frames [start, stop) of one file: float32[n, channels]; memory does not grow with its length.

    Raises:
        SourceError: the file is damaged there.
        MissingExtra: soundfile is not installed.
    """
    with _opened(path) as file:
        file.seek(start)
        frames: NDArray[np.float32] = file.read(stop - start, dtype="float32", always_2d=True)
    if len(frames) < stop - start:
        raise SourceError(f"{path}: cut short at frame {start + len(frames)}: copy or record it again")
    return frames


def read_directory(
    directory: Path, loop: bool, counters: Counters, block_s: float = BLOCK_SECONDS
) -> Iterator[SourceAudio]:
    """Decode every audio file below `directory` in order, as one stream.

    A file that cannot be read is skipped, logged and counted, once; so is the rest of a damaged one.

    Raises:
        SourceError: there is no audio file, or none that can be read.
    """
    paths = audio_files(directory)
    skipped: set[Path] = set()
    while True:
        delivered = False
        for path in paths:
            try:
                for raw in read_file(path, block_s):
                    delivered = True
                    yield raw
            except SourceError as exc:
                if path not in skipped:
                    skipped.add(path)
                    counters.files_skipped += 1
                    _LOG.warning("skipped: %s", exc)
        if not delivered:
            raise SourceError(f"{directory}: none of its {len(paths)} audio files can be read, see the log")
        if not loop:
            return


def _check_header(path: Path, file: Any) -> None:
    """Refuse a header that cannot be, or that promises more bytes than there are."""
    if file.frames == 0:
        raise SourceError(f"{path}: holds no audio sample: record it again")
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
        raise SourceError(f"{path}: {file.samplerate} Hz, outside {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz: convert it first")
    if file.channels > MAX_CHANNELS:
        raise SourceError(f"{path}: {file.channels} channels, more than {MAX_CHANNELS}: mix it down first")
    if missing := _missing_wav_bytes(path):
        raise SourceError(f"{path}: cut short, {missing} bytes are missing: copy or record it again")


def _check(path: Path, file: Any) -> None:
    """Refuse what a header promises and the file does not hold."""
    _check_header(path, file)
    if file.seekable() and file.frames < _UNKNOWN_FRAMES:
        try:
            file.seek(file.frames - 1)
            last = len(file.read(1, dtype="float32"))
        except soundfile_module().SoundFileError:
            last = 0
        if not last:
            raise SourceError(f"{path}: cut short, its end is missing: copy or record it again")
        file.seek(0)


def _missing_wav_bytes(path: Path) -> int:
    """Bytes a WAV file's data chunk promises beyond the end; libsndfile shortens such a file silently."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        position = len(head)
        for _ in range(_MAX_WAV_CHUNKS):
            file.seek(position)
            if len(chunk := file.read(8)) < 8:
                break
            name, length = struct.unpack("<4sI", chunk)
            position += 8
            if name == b"data":
                return 0 if length >= _UNKNOWN_WAV_BYTES else max(0, position + length - size)
            position += length + (length & 1)
    return 0


def soundfile_module() -> Any:
    """The library, for whoever reads or writes audio. Raises MissingExtra or SourceError when it is not there."""
    try:
        import soundfile
    except ImportError as exc:
        raise MissingExtra("soundfile", "audio") from exc
    except OSError as exc:
        raise SourceError("the library libsndfile is missing: install it (Debian: apt install libsndfile1)") from exc
    return soundfile
