"""Raw PCM from a pipe."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from runtime_edge.audio.audio_block import Counters
from runtime_edge.audio.files import mpeg
from runtime_edge.audio.live import FrameQueue
from runtime_edge.audio.stream import BLOCK_SECONDS, SourceAudio
from runtime_edge.errors import SourceError

_CONTAINERS = (
    (0, b"RIFF", "WAV"),
    (0, b"RIFX", "WAV"),
    (0, b"RF64", "WAV"),
    (0, b"BW64", "WAV"),
    (0, b"riff.\x91\xcf\x11", "WAV"),
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (0, b"FORM", "AIFF"),
    (0, b"caff", "CAF"),
    (0, b".snd", "AU"),
    (0, b"dns.", "AU"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "WMA"),
    (0, b"Creative Voice", "VOC"),
    (0, b"NIST_1A", "NIST"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"PK\3\4", "zip"),
    (0, b".SoX", "SoX's own format"),
    (0, b"XoS.", "SoX's own format"),
    (0, b"d\xa3\1\0", "IRCAM"),
    (0, b"d\xa3\2\0", "IRCAM"),
    (0, b"d\xa3\3\0", "IRCAM"),
    (0, b"d\xa3\4\0", "IRCAM"),
    (0, b" paf", "PAF"),
    (0, b"fap ", "PAF"),
    (0, b"PVF1\n", "PVF"),
    (0, b"2BIT", "AVR"),
    (0, b"MATLAB 5.0", "MATLAB"),
    (0, b"ALawSoundFile", "Psion WVE"),
    (0, b"Extended Instr", "XI"),
    (0, b"TTA1", "TTA"),
    (0, b"DSD \x1c", "DSD"),
    (0, b"FRM8", "DSD"),
    (0, b"FLV\1", "FLV"),
    (0, b".RMF", "RealMedia"),
    (0, b"ADIF", "AAC"),
    (0, b"\x7f\xfe\x80\1", "DTS"),
    (4, b"ftyp", "MP4"),
)
"""The bytes by which a container is recognised, by their place."""
_LONGEST_MARK = 16
_TRANSPORT_PACKET, _TRANSPORT_SYNC = 188, 0x47


def read_pcm16(fd: int, rate_hz: int, channels: int, counters: Counters) -> Iterator[SourceAudio]:
    """Read signed 16-bit little-endian interleaved PCM from a file descriptor until it ends.

    Bytes of an incomplete last frame count as one bad sample.

    Raises:
        SourceError: a terminal, an empty stream, or one that starts like an audio file.
    """
    if os.isatty(fd):
        raise SourceError("stdin: is a terminal: pipe raw 16-bit PCM into it, or name a file")
    frame_bytes = 2 * channels
    block_bytes = frame_bytes * max(1, round(rate_hz * BLOCK_SECONDS))
    pending, starts, ended = b"", True, False
    while not ended:
        data = _read(fd, block_bytes)
        pending, ended = pending + data, not data
        if starts and len(pending) < _decisive_bytes(pending) and not ended:
            continue  # a container is known by its first bytes
        if starts and (container := _container(pending)):
            raise SourceError(f"stdin: holds {container}, not raw 16-bit PCM: name the file instead of -")
        if whole := len(pending) - len(pending) % frame_bytes:
            yield SourceAudio(_decode(pending[:whole], channels), rate_hz, starts)
            pending, starts = pending[whole:], False
    if pending:
        counters.bad_samples += 1
    if starts:
        raise SourceError("stdin: ended before the first sample: check the program that writes into the pipe")


def _container(data: bytes) -> str | None:
    """What begins like this, if it is known and not PCM."""
    named = (name for place, mark, name in _CONTAINERS if data.startswith(mark, place))
    if mpeg.is_mpeg(data):
        return "MP3 or AAC"
    packets = data[: _transport_bytes(data) : _TRANSPORT_PACKET]
    return next(named, "an MPEG transport stream" if len(packets) == 3 and len({*packets}) == 1 else None)


def _decisive_bytes(data: bytes) -> int:
    """How many bytes are needed to tell what begins like this."""
    frame = mpeg.frame_bytes(data)
    return max(_LONGEST_MARK, frame + mpeg.HEADER_BYTES if frame else 0, _transport_bytes(data))


def _transport_bytes(data: bytes) -> int:
    """How many bytes show whether what begins like this is a transport stream: up to its third packet; 0: it is not."""
    return 2 * _TRANSPORT_PACKET + 1 if data[:1] == bytes((_TRANSPORT_SYNC,)) else 0


def capture_pcm16(fd: int, rate_hz: int, channels: int, queue: FrameQueue, counters: Counters) -> None:
    """Start a thread that moves PCM from `fd` into `queue` as it comes.

    The thread ends with the stream; it cannot be woken from a read, so it is a daemon.
    """

    def run() -> None:
        error: SourceError | None = None
        try:
            for raw in read_pcm16(fd, rate_hz, channels, counters):
                queue.put(raw.frames)
        except SourceError as exc:
            error = exc
        finally:
            queue.close(error)

    threading.Thread(target=run, name="stdin capture", daemon=True).start()


def _read(fd: int, size: int) -> bytes:
    # Not sys.stdin.buffer: a thread blocked in it holds a lock that the interpreter wants at its exit.
    try:
        return os.read(fd, size)
    except OSError as exc:
        raise SourceError(f"stdin: cannot be read ({exc.strerror}): open it or name a file") from exc


def _decode(data: bytes, channels: int) -> NDArray[np.float32]:
    pcm = np.frombuffer(data, "<i2").reshape(-1, channels)
    frames: NDArray[np.float32] = pcm.astype(np.float32)
    frames /= 32768
    return frames
