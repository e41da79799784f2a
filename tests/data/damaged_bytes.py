"""What damage makes of a small file."""

from __future__ import annotations

from collections.abc import Iterator


def damaged(data: bytes) -> Iterator[bytes]:
    """The file cut off after every byte, and with every byte changed in five ways."""
    for size in range(len(data)):
        yield data[:size]
    for place in range(len(data)):
        for value in (0x00, 0x7F, 0x80, 0xFF, data[place] ^ 1):
            yield data[:place] + bytes((value,)) + data[place + 1 :]
