"""Ogg: whether a stream was closed, what follows it, and how to read a truncated last page as far as it goes.

A page of music holds seconds, and a short recording is a single page; a page with a wrong checksum is not decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

_LONGEST_PAGE = 65_307
_HEADER = 27
"""Bytes of a page before its table of segment lengths; the last of them is the number of segments."""
_FLAGS, _CHECKSUM, _PARTS = 5, slice(22, 26), 26
"""Positions in that header."""
_FIRST, _LAST = 2, 4
"""Flags of a page that begins a stream, and of one that ends it."""
_GOES_ON = 255
"""Length of a segment whose packet continues in the next one."""
_POLYNOMIAL = 0x04C1_1DB7


class OggEnd(NamedTuple):
    """How an Ogg file ends."""

    closed: bool
    """Whether its last page is whole and marked as the last."""
    again: bool
    """Whether another stream follows the first."""
    patches: Mapping[int, bytes] = MappingProxyType({})
    """Bytes to read in place of the file's own, by position, so that a truncated page becomes a valid one."""
    end: int | None = None
    """Where the file must seem to end for that."""


def ogg_end(file: BinaryIO, size: int) -> OggEnd:
    """How an Ogg file ends, and how to read it to there. Raises OSError."""
    tail_at = max(0, size - _LONGEST_PAGE)
    file.seek(tail_at)
    tail = file.read()
    at = max(0, tail.rfind(b"OggS"))
    page = tail[at:]
    count = page[_PARTS] if len(page) >= _HEADER else 0
    parts = page[_HEADER : _HEADER + count]
    whole = bool(parts) and len(page) >= _HEADER + count + sum(parts)
    again = _begins_again(file)
    if whole or len(parts) < count or again:
        return OggEnd(whole and bool(page[_FLAGS] & _LAST), again)
    return _shortened(tail_at + at, page, parts)


def _shortened(at: int, page: bytes, parts: bytes) -> OggEnd:
    """A shorter page with only the whole packets: its header still ends where it did, so that they follow it."""
    body = page[_HEADER + len(parts) :]
    ends = itertools.accumulate(parts)
    kept = [number for number, end in enumerate(ends, 1) if end <= len(body) and parts[number - 1] < _GOES_ON]
    if not kept:
        return OggEnd(closed=False, again=False)
    parts, lost = parts[: kept[-1]], len(parts) - kept[-1]
    body = body[: sum(parts)]
    header = bytearray(page[:_HEADER])
    header[_FLAGS] &= ~_LAST
    header[_PARTS] = len(parts)
    header[_CHECKSUM] = bytes(4)
    header[_CHECKSUM] = _checksum(bytes(header) + parts + body).to_bytes(4, "little")
    patch = bytes(lost) + bytes(header) + parts
    return OggEnd(closed=False, again=False, patches={at: patch}, end=at + len(patch) + len(body))


def _checksum(data: bytes) -> int:
    """The CRC-32 of RFC 3533: not reflected, starting from 0."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF_FFFF) ^ _TABLE[value >> 24 ^ byte]
    return value


def _entry(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = (value << 1) ^ (_POLYNOMIAL if value >> 31 else 0)
        value &= 0xFFFF_FFFF
    return value


_TABLE = tuple(map(_entry, range(256)))


def _begins_again(file: BinaryIO) -> bool:
    """Whether a stream begins after pages of another one; both may have the same serial number."""
    position, goes_on = 0, False
    while True:
        file.seek(position)
        head = file.read(_HEADER)
        if len(head) < _HEADER:
            return False
        if head[:4] != b"OggS":  # damage, or the end of what was written
            ahead = (head + file.read(_LONGEST_PAGE)).find(b"OggS", 1)
            if ahead < 0:
                return False
            position += ahead
            continue
        begins = bool(head[_FLAGS] & _FIRST)
        if begins and goes_on:
            return True
        goes_on = goes_on or not begins
        position += _HEADER + head[-1] + sum(file.read(head[-1]))
