"""The lengths that containers of samplers, workstations and speech corpora state.

IRCAM, PAF and PVF state no length: such a file is recognised as truncated only if it ends within a sample of several
bytes or channels.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

_MAX_PARTS = 1_000
_HEAD = 1_024
_NIST_FIELD = re.compile(rb"^(sample_count|channel_count|sample_n_bytes) -\S+ (\d+)", re.MULTILINE)
_HTK_PCM = struct.pack(">HH", 2, 0)
"""Bytes per sample, and the kind of parameter that is a waveform."""
_HTK_PERIODS = range(13, 10_001)
"""Sample periods in units of 100 ns, from 768 to 1 kHz."""
_SDS_HEADER, _SDS_PACKET, _SDS_VALUES = 21, 127, 120
_VOC_FIRST, _VOC_MORE_AUDIO = {1: 2, 9: 12}, 2
"""Bytes before the samples, by a block's kind."""
_VOC_LONGEST = (1 << 24) - 1
_VOC_WHOLE = (-1, 0, 8)
"""By how many bytes the samples of libsndfile and SoX exceed the stated length: both miscount what precedes them."""
_MAT4_NAME = slice(20, 31)
"""Position of the first matrix's name, which libsndfile asks for."""
_MAT4_BYTES = (8, 4, 4, 2, 2, 1)
_IRCAM_HEADER, _PAF_HEADER = 1_024, 2_048
_PAF_BYTES = {0: 2, 1: 32, 2: 1}
"""Bytes of a sample, by encoding; for 24 bits, of a block of ten."""
_PVF_HEADER = re.compile(rb"PVF1\s+(\d{1,4})\s+\d+\s+(\d{1,2})\s*?\n")
_MAT5_MATRIX = 14
_MAT5_SLACK = 8
"""By how many bytes libsndfile overstates a matrix's length."""


_NOTHING: Mapping[int, bytes] = MappingProxyType({})


class Length(NamedTuple):
    """How much audio a container says it has, and how much there is."""

    stated: int
    held: int
    patches: Mapping[int, bytes] = _NOTHING
    """Bytes to read in place of the file's own, by position, so that all of it is read."""
    end: int | None = None
    """Where the file must seem to end for that; None for its real end."""
    unread: str | None = None
    """Which part of the file is not read, in words."""


def rare_length(file: BinaryIO, size: int) -> Length | None:
    """The stated and actual length in bytes; None if the file is in none of these formats. Raises OSError."""
    file.seek(0)
    head = file.read(_HEAD)
    for magic, read in _BY_MAGIC.items():
        if head.startswith(magic):
            return read(file, head.ljust(_HEAD, b"\0"), size)
    if head[_MAT4_NAME] == b"samplerate\0":
        return _mat4(file, head, size)
    return _htk(head, size)


def is_htk(head: bytes) -> bool:
    """Whether HTK may have written a file that begins like this: 16-bit samples at a plausible audio rate."""
    return head[8:12] == _HTK_PCM and int.from_bytes(head[4:8], "big") in _HTK_PERIODS


def _avr(_: BinaryIO, head: bytes, size: int) -> Length:
    stereo, bits = struct.unpack_from(">hH", head, 12)
    (frames,) = struct.unpack_from(">I", head, 26)
    return Length(frames * (2 if stereo else 1) * (bits // 8), size - 128)


def _nist(_: BinaryIO, head: bytes, size: int) -> Length | None:
    found = {name: int(value) for name, value in _NIST_FIELD.findall(head)}
    begin = head[8:16].strip()
    if b"sample_count" not in found or not begin.isdigit():
        return None
    frame = found.get(b"channel_count", 1) * found.get(b"sample_n_bytes", 2)
    return Length(found[b"sample_count"] * frame, size - int(begin))


def _mpc2k(_: BinaryIO, head: bytes, size: int) -> Length:
    (frames,) = struct.unpack_from("<I", head, 30)
    return Length(frames * (2 if head[21] else 1) * 2, size - 42)


def _wve(_: BinaryIO, head: bytes, size: int) -> Length:
    return Length(int.from_bytes(head[18:22], "big"), size - 32)


def _xi(_: BinaryIO, head: bytes, size: int) -> Length | None:
    (samples,) = struct.unpack_from("<H", head, 296)
    lengths = [struct.unpack_from("<I", head, 298 + 40 * sample)[0] for sample in range(min(samples, 16))]
    stated = sum(lengths)
    return Length(stated, size - 298 - 40 * samples) if stated else None  # libsndfile itself writes none


def _ircam(_: BinaryIO, head: bytes, size: int) -> Length | None:
    order = "<" if head[9:12] == bytes(3) else ">"
    channels, encoding = struct.unpack_from(f"{order}II", head, 8)
    return _whole(size - _IRCAM_HEADER, channels * (encoding & 0xFF))


def _paf(_: BinaryIO, head: bytes, size: int) -> Length | None:
    order = ">" if head[:1] == b" " else "<"
    encoding, channels = struct.unpack_from(f"{order}II", head, 16)
    return _whole(size - _PAF_HEADER, channels * _PAF_BYTES.get(encoding, 0))


def _pvf(_: BinaryIO, head: bytes, size: int) -> Length | None:
    found = _PVF_HEADER.match(head)
    return None if found is None else _whole(size - found.end(), int(found[1]) * (int(found[2]) // 8))


def _whole(held: int, frame: int) -> Length | None:
    """For a format that states no length: None if the last sample of all channels is whole, else what is not read."""
    if held <= 0 or not frame or not held % frame:
        return None
    return Length(0, 0, unread=f"its last {held % frame} bytes are a part of a sample: cut short, read up to there")


def _voc(file: BinaryIO, head: bytes, size: int) -> Length | None:
    """Length of the first block of audio: libsndfile reads everything after it as well, or refuses the file."""
    position = int.from_bytes(head[20:22], "little")
    for kind, begin, length in _voc_blocks(file, position, size):
        if kind not in _VOC_FIRST:
            continue
        held = max(0, size - begin - 1)  # the last byte terminates the list of blocks
        patches = {begin - 3: min(held, _VOC_LONGEST).to_bytes(3, "little")}
        skipped = _VOC_FIRST[kind]
        if held - length in _VOC_WHOLE and _at(file, size - 1, 1) == b"\0":
            return None
        behind = list(_voc_blocks(file, begin + length, size))
        if length > skipped and behind and all(begin + length <= size for _, begin, length in behind):
            more = sum(kind in (*_VOC_FIRST, _VOC_MORE_AUDIO) for kind, _, _ in behind)
            no_audio = sum(4 + _VOC_FIRST.get(kind, 0 if kind == _VOC_MORE_AUDIO else n) for kind, _, n in behind)
            unread = f"{more} more blocks of audio follow the first: the {no_audio:,} bytes between them are read as"
            return Length(0, 0, patches, unread=f"{unread} samples, convert it first" if more else None)
        return Length(max(0, length - skipped), held - skipped, patches)
    return None


def _voc_blocks(file: BinaryIO, position: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Kind, position of the contents and stated length of each block, up to the one that ends the list."""
    for _ in range(_MAX_PARTS):
        head = _at(file, position, 4)
        if len(head) < 4 or not head[0]:
            return
        length = int.from_bytes(head[1:], "little")
        yield head[0], position + 4, length
        position += 4 + length


def _sds(_: BinaryIO, head: bytes, size: int) -> Length | None:
    """A sample takes as many 7-bit bytes as it needs; an incomplete packet is not read."""
    bits = head[6]
    if bits not in range(8, 29) or size < _SDS_HEADER:
        return None
    stated = head[10] | head[11] << 7 | head[12] << 14
    a_packet = _SDS_VALUES // -(-bits // 7)
    packets = max(0, size - _SDS_HEADER) // _SDS_PACKET
    held = packets * a_packet
    if held - a_packet < stated <= held:
        return Length(held, held)
    sample_bytes = -(-bits // 8)
    read = min(held, (1 << 21) - 1)
    patch = bytes((read & 0x7F, read >> 7 & 0x7F, read >> 14))
    return Length(stated * sample_bytes, held * sample_bytes, {10: patch}, _SDS_HEADER + packets * _SDS_PACKET)


def _mat4(file: BinaryIO, head: bytes, size: int) -> Length | None:
    order = "<" if head[3] == 0 and head[2] == 0 else ">"
    header = struct.Struct(f"{order}5I")

    def parts() -> Iterator[tuple[int, int]]:
        position = 0
        while len(data := _at(file, position, header.size)) == header.size:
            kind, rows, columns, imaginary, name = header.unpack(data)
            width = _MAT4_BYTES[min(kind // 10 % 10, 5)]
            begin = position + header.size + name
            position = begin + rows * columns * width * (2 if imaginary else 1)
            yield begin, position

    return _last_part(parts(), size, 0)


def _mat5(file: BinaryIO, head: bytes, size: int) -> Length | None:
    header = struct.Struct(f"{'<' if head[126:128] == b'IM' else '>'}II")

    def parts() -> Iterator[tuple[int, int]]:
        position = 128
        while len(data := _at(file, position, header.size)) == header.size:
            kind, length = header.unpack(data)
            begin, position = position + header.size, position + header.size + length
            if kind != _MAT5_MATRIX:
                return
            yield begin, position

    return _last_part(parts(), size, _MAT5_SLACK)


def _last_part(parts: Iterator[tuple[int, int]], size: int, slack: int) -> Length | None:
    """The last matrix of the file, which holds the samples."""
    for _, (begin, end) in zip(range(_MAX_PARTS), parts, strict=False):
        if end > size + slack:
            return Length(end - begin, size - begin)
    return None


def _at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _htk(head: bytes, size: int) -> Length | None:
    """HTK files have no magic number: libsndfile recognises them by their length, which has to match."""
    if not is_htk(head):
        return None
    (samples,) = struct.unpack_from(">I", head)
    held = (size - 12) // 2
    if samples == held and not size % 2:
        return None
    return Length(2 * samples, 2 * held, {0: struct.pack(">I", held)}, 12 + 2 * held)


_BY_MAGIC: dict[bytes, Callable[[BinaryIO, bytes, int], Length | None]] = {
    **dict.fromkeys([b"d\xa3\1\0", b"d\xa3\2\0", b"d\xa3\3\0", b"d\xa3\4\0"], _ircam),
    **dict.fromkeys([b" paf", b"fap "], _paf),
    b"PVF1\n": _pvf,
    b"2BIT": _avr,
    b"NIST_1A": _nist,
    b"\1\4": _mpc2k,
    b"ALawSoundFile**": _wve,
    b"Extended Instrument: ": _xi,
    b"Creative Voice File\x1a": _voc,
    b"\xf0\x7e": _sds,
    b"MATLAB 5.0": _mat5,
}
