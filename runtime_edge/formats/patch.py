"""Binary patches between two files of the same graph, in chunks, each matched with the old chunk at the same offset.

Training moves most weights a little: then a chunk is best written as its bytewise difference (XOR), split into four
byte planes, because the sign, the exponent and the first digits of each float32 stay the same. If that does not
help, the chunk is compressed with the old bytes as zstd's dictionary. (zstd over a whole 25 MB file at once does far
worse: 8.4 MB against 23 kB in chunks, for changed norms.)

A patch is `SSCP`, a MessagePack array (version, size of the new file, chunk size), and for each chunk one byte (0:
dictionary, 1: planes), a 4-byte little-endian length, and a zstd frame. Nothing in it is executed, and the result is
used only if it has the digest that the manifest promises.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.base.zstd import (
    CompressionParameter,
    DecompressionParameter,
    ZstdCompressor,
    ZstdDecompressor,
    ZstdDict,
    ZstdError,
    compress_frame,
    decompress_frame,
)
from runtime_edge.errors import FormatError
from runtime_edge.formats.encoder.parts import MAX_ASSET_BYTES
from runtime_edge.formats.strict import decode

_MAGIC = b"SSCP"
_VERSION = 1
_CHUNK = 4 << 20
_MARGIN = 64 << 10
_LEVEL = 3
_HASH_LOG = 20
_WINDOW_LOG = 24
_SHORTEST_DICTIONARY = 8
_WIDTH = 4
"""Bytes per weight."""
_FRAME = struct.Struct("<BI")
_DICTIONARY, _PLANES = 0, 1
_POOR = 0.8
"""A difference that still takes more than this share of a chunk is no better than random."""


class _PatchHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Annotated[int, Meta(ge=1, le=1)]
    size: Annotated[int, Meta(ge=0, le=MAX_ASSET_BYTES)]
    chunk: Annotated[int, Meta(ge=1 << 16, le=1 << 26)]


def make_patch(old: bytes, new: bytes) -> bytes:
    """A patch that turns `old` into `new`; deterministic."""
    header = msgspec.msgpack.encode(_PatchHeader(_VERSION, len(new), _CHUNK))
    parts = [_MAGIC, bytes((len(header),)), header]
    for start in range(0, len(new), _CHUNK):
        method, frame = _compress(old, new[start : start + _CHUNK], start)
        parts += [_FRAME.pack(method, len(frame)), frame]
    return b"".join(parts)


def apply_patch(old: bytes, patch: bytes, size: int) -> bytes:
    """The new file of `size` bytes. Raises FormatError; check the result's digest before using it."""
    header, position = _read_header(patch)
    if header.size != size:
        raise FormatError(f"patch makes {header.size} bytes, expected {size}")
    made: list[bytes] = []
    for start in range(0, size, header.chunk):
        if position + _FRAME.size > len(patch):
            raise FormatError("patch is cut short")
        method, length = _FRAME.unpack_from(patch, position)
        position += _FRAME.size
        frame = patch[position : position + length]
        if len(frame) != length:
            raise FormatError("patch is cut short")
        position += length
        made.append(_decompress(old, frame, method, start, header.chunk, min(header.chunk, size - start)))
    if position != len(patch):
        raise FormatError("patch has data after its end")
    return b"".join(made)


def _compress(old: bytes, chunk: bytes, start: int) -> tuple[int, bytes]:
    """The better of the two methods, and its zstd frame."""
    planes = _difference(old, chunk, start).reshape(-1, _WIDTH).T.tobytes()
    frame = compress_frame(ZstdCompressor(level=_LEVEL), planes)
    if len(frame) <= _POOR * len(chunk):
        return _PLANES, frame
    options: dict[int, int] = {
        CompressionParameter.compression_level: _LEVEL,
        CompressionParameter.window_log: _WINDOW_LOG,
        CompressionParameter.hash_log: _HASH_LOG,
    }
    dictionary = _dictionary(old, start, _CHUNK)
    if dictionary is None:
        return _PLANES, frame
    other = compress_frame(ZstdCompressor(options=options, zstd_dict=dictionary.as_undigested_dict), chunk)
    return (_DICTIONARY, other) if len(other) < len(frame) else (_PLANES, frame)


def _decompress(old: bytes, frame: bytes, method: int, start: int, chunk: int, size: int) -> bytes:
    """One chunk of `size` bytes. Raises FormatError."""
    if method not in (_DICTIONARY, _PLANES):
        raise FormatError(f"patch has a chunk of kind {method}; this version knows 0 and 1")
    dictionary = _dictionary(old, start, chunk) if method == _DICTIONARY else None
    expected = size if method == _DICTIONARY else size + -size % _WIDTH
    decompressor = ZstdDecompressor(dictionary, {DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        found = decompress_frame(decompressor, frame, expected)
    except ZstdError as exc:
        raise FormatError(f"patch cannot be applied ({exc})") from None
    if found is None:
        raise FormatError("patch does not fit the file it is for")
    if method == _DICTIONARY:
        return found
    difference = np.frombuffer(found, np.uint8).reshape(_WIDTH, -1).T.tobytes()
    return _difference(old, difference[:size], start).tobytes()[:size]


def _difference(old: bytes, data: bytes, start: int) -> npt.NDArray[np.uint8]:
    """Bytewise XOR of `data` with `old` from `start` on (zeros after its end), padded to a multiple of the width."""
    padded = np.zeros(len(data) + -len(data) % _WIDTH, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    there = np.frombuffer(old, np.uint8)[start : start + len(data)]
    padded[: len(there)] ^= there
    return padded


def _read_header(patch: bytes) -> tuple[_PatchHeader, int]:
    length = patch[4] if len(patch) > 5 else 0
    if patch[:4] != _MAGIC or 5 + length > len(patch):
        raise FormatError("not a patch")
    return decode(patch[5 : 5 + length], _PatchHeader, "patch header", 0xFF, form="MessagePack"), 5 + length


def _dictionary(old: bytes, start: int, chunk: int) -> ZstdDict | None:
    """The old bytes around a chunk; None if they are too few for zstd."""
    part = old[max(0, start - _MARGIN) : start + chunk + _MARGIN]
    return ZstdDict(part, is_raw=True) if len(part) >= _SHORTEST_DICTIONARY else None
