"""Ogg: whether a stream was closed, what follows it, and how to read a page that was cut short as far as it goes.

A page of music holds seconds, a short recording is a single one, and none is decoded whose checksum does not fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

_LONGEST_PAGE = 65_307
_HEADER = 27
"""Bytes of a page before the lengths of its parts, of which the last is their number."""
_FLAGS, _CHECKSUM, _PARTS = 5, slice(22, 26), 26
"""Places in that header."""
_FIRST, _LAST = 2, 4
"""Flags of a page that begins a stream, and of one that ends it."""
_GOES_ON = 255
"""Length of a part behind which its packet goes on."""
_POLYNOMIAL = 0x04C1_1DB7


class OggEnd(NamedTuple):
    """How an Ogg file ends."""

    closed: bool
    """Whether its last page is whole and says that it is the last."""
    again: bool
    """Whether another stream follows the first."""
    patches: Mapping[int, bytes] = MappingProxyType({})
    """What must be read instead of the file's own bytes, by position, so that a page that was cut is one."""
    end: int | None = None
    """Where the file must seem to end for that."""


def ogg_end(file: BinaryIO, size: int) -> OggEnd:
    """What can be made of the end of an Ogg file. Raises OSError."""
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
    """A page with the packets that are whole: its header ends where it did, so that they follow it."""
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
    """The cyclic redundancy check of RFC 3533: not reflected, from 0."""
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
    """Whether a stream begins behind pages of another one, whose number may be the same."""
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
