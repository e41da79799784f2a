"""What damage makes of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def damaged(data: bytes) -> Iterator[bytes]:
    """A small file cut off after every byte, and with every byte changed in five ways."""
    for size in range(len(data)):
        yield data[:size]
    for place in range(len(data)):
        for value in (0x00, 0x7F, 0x80, 0xFF, data[place] ^ 1):
            yield data[:place] + bytes((value,)) + data[place + 1 :]


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file round."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
