"""MPEG audio (MP2, MP3, AAC in ADTS): where a frame ends, and how long a file says it is."""

from __future__ import annotations

import re
from typing import BinaryIO, NamedTuple

HEADER_BYTES = 7
_LONGEST_FRAME = 1 << 13
_SEARCHED = 1 << 16
"""The most padding there can be between a tag and the first frame, bytes."""
_ID3_BYTES = 10
_ID3_FOOTER = 0x10
_ID3_1_BYTES = 128
"""Length of an ID3 tag of version 1, which stands at a file's end."""
_APE_BYTES = 32
"""Length of an APE tag's header, and of its footer."""
_APE_HAS_HEADER = 0x80
_TAG = re.compile(rb"Xing|Info")
_TAG_WITHIN = 64
_HAS_FRAMES, _HAS_BYTES = 1, 2
_LAYER_2_KBPS = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_LAYER_3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_LOW_KBPS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Bit rates of both layers at the low sample rates."""


class MpegLength(NamedTuple):
    """The length that an MP3 file states in the tag within its first frame."""

    begin: int
    """Position of the first frame."""
    tag_at: int | None
    """Position of the tag; None if there is none, or if it does not state the number of frames."""
    stated: int | None
    """Stated length in bytes, from `begin` on; None if the tag does not say."""


def frame_bytes(head: bytes) -> int:
    """Length of the layer II, layer III or AAC frame that begins here; 0 if none does."""
    if len(head) < HEADER_BYTES or head[0] != 0xFF or head[1] < 0xE0:
        return 0
    if head[1] & 0xF6 == 0xF0:  # AAC in ADTS
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    version, layer, bit_rate, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if layer not in (2, 3) or version == 1 or rate == 3 or not 0 < bit_rate < 15:
        return 0
    full = version == 3
    kbps = (_LOW_KBPS if not full else _LAYER_2_KBPS if layer == 2 else _LAYER_3_KBPS)[bit_rate - 1]
    hz = (44_100, 48_000, 32_000)[rate] >> (0 if full else 1 if version == 2 else 2)
    return (144 if full or layer == 2 else 72) * kbps * 1000 // hz + (head[2] >> 1 & 1)


def is_mpeg(data: bytes) -> bool:
    """Whether MPEG audio without a tag begins here: a frame header, with another one where that frame ends."""
    frame = frame_bytes(data)
    return bool(frame and frame_bytes(data[frame:]))


def stated_length(file: BinaryIO) -> MpegLength | None:
    """The length that a file states; None if it is not MPEG audio. Raises OSError."""
    begin = _first_frame(file, 0)
    if begin is None:
        return None
    file.seek(begin)
    head = file.read(_TAG_WITHIN)
    tag = _TAG.search(head)
    if tag is None:
        return MpegLength(begin, None, None)
    file.seek(begin + tag.end())
    flags, frames, size = (int.from_bytes(file.read(4), "big") for _ in range(3))
    if not flags & _HAS_FRAMES or not frames:
        return MpegLength(begin, None, None)
    return MpegLength(begin, begin + tag.start(), size or None if flags & _HAS_BYTES else None)


def before_tags(file: BinaryIO, size: int) -> int:
    """Where the tags begin that players put at a file's end; the file's size if there are none. Raises OSError."""
    file.seek(max(0, size - _ID3_1_BYTES))
    if size > _ID3_1_BYTES and file.read(3) == b"TAG":
        size -= _ID3_1_BYTES
    file.seek(max(0, size - _APE_BYTES))
    footer = file.read(_APE_BYTES)
    if footer[:8] != b"APETAGEX":
        return size
    held = int.from_bytes(footer[12:16], "little") + (_APE_BYTES if footer[23] & _APE_HAS_HEADER else 0)
    return size - held if held < size else size


def goes_on(file: BinaryIO, position: int) -> bool:
    """Whether another stream of frames begins at a position, perhaps after tags. Raises OSError."""
    file.seek(position)
    if file.read(3) == b"TAG":
        position += _ID3_1_BYTES
    return _first_frame(file, position) is not None


def _first_frame(file: BinaryIO, position: int) -> int | None:
    file.seek(position)
    head = file.read(_ID3_BYTES)
    tagged = head[:3] == b"ID3" and len(head) == _ID3_BYTES
    if tagged:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        position += _ID3_BYTES + size + (_ID3_BYTES if head[5] & _ID3_FOOTER else 0)
    file.seek(position)
    data = file.read(_SEARCHED)
    at = data.find(b"\xff") if tagged else 0
    while 0 <= at < len(data):
        if is_mpeg(data[at : at + _LONGEST_FRAME + HEADER_BYTES]):
            return position + at
        at = data.find(b"\xff", at + 1) if tagged else -1
    return None
