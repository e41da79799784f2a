"""FLAC without the file around it: the stream's header is the same for every chunk, so it is not sent."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from runtime_edge.audio.file_decoder import soundfile_module
from runtime_edge.errors import FormatError

_MARK = b"fLaC"
_STREAMINFO = 0
_BLOCK_SAMPLES = 4096
Pcm = npt.NDArray[np.int16]


def encode(pcm: Pcm, rate: int) -> bytes:
    """FLAC frames of samples (n,) at the highest compression. Raises MissingExtra without soundfile."""
    file = io.BytesIO()
    soundfile_module().write(file, pcm, rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
    data = file.getvalue()
    position, last = len(_MARK), False
    while not last:  # metadata blocks: a flag, a kind, a length
        last = bool(data[position] & 0x80)
        position += 4 + int.from_bytes(data[position + 1 : position + 4], "big")
    return data[position:]


def decode(frames: bytes, samples: int, rate: int) -> Pcm:
    """Exactly `samples` samples of `encode`'s frames. Raises FormatError for anything else."""
    library = soundfile_module()
    try:
        with library.SoundFile(io.BytesIO(_header(samples, rate) + frames)) as file:
            if (file.channels, file.samplerate) != (1, rate):
                raise FormatError("FLAC frames of another rate or number of channels")
            pcm: Pcm = file.read(samples + 1, dtype="int16")
    except library.LibsndfileError as exc:
        raise FormatError(f"not FLAC frames ({exc.error_string})") from None
    if len(pcm) != samples:
        raise FormatError(f"FLAC frames hold {len(pcm)} samples, expected {samples}")
    return pcm


def _header(samples: int, rate: int) -> bytes:
    """The mark and a STREAMINFO block: block sizes, frame sizes (unknown), rate, mono, 16 bits, length, no digest."""
    what = rate << 44 | 0 << 41 | 15 << 36 | samples
    info = 2 * _BLOCK_SAMPLES.to_bytes(2, "big") + bytes(6) + what.to_bytes(8, "big") + bytes(16)
    return _MARK + bytes((0x80 | _STREAMINFO,)) + len(info).to_bytes(3, "big") + info
