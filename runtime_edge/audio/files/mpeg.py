"""MPEG audio (MP3, AAC in ADTS)."""

from __future__ import annotations

HEADER_BYTES = 7
_LAYER_3_KBPS = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)


def frame_bytes(head: bytes) -> int:
    """Length of the layer III or AAC frame that begins here; 0 where none does."""
    if len(head) < HEADER_BYTES or head[0] != 0xFF or head[1] < 0xE0:
        return 0
    if head[1] & 0xF6 == 0xF0:  # AAC in ADTS
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    version, bit_rate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if head[1] >> 1 & 3 != 1 or version == 1 or rate == 3 or not 0 < bit_rate < 15:
        return 0
    kbps = _LAYER_3_KBPS[version != 3][bit_rate - 1]
    hz = (44_100, 48_000, 32_000)[rate] >> (0 if version == 3 else 1 if version == 2 else 2)
    return (144 if version == 3 else 72) * kbps * 1000 // hz + (head[2] >> 1 & 1)


def is_mpeg(data: bytes) -> bool:
    """Whether MPEG audio without a tag begins here: a frame's header, and another one where that frame ends."""
    frame = frame_bytes(data)
    return bool(frame and frame_bytes(data[frame:]))
