"""Recognises data that is not raw PCM by its first bytes: containers, frames of a codec, text."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from runtime_edge.audio.files import mpeg
from runtime_edge.audio.files.rare_containers import is_htk

_MARKS = (
    (0, b"RIFF", "WAV"),
    (0, b"RIFX", "WAV"),
    (0, b"RF64", "WAV"),
    (0, b"BW64", "WAV"),
    (0, b"riff.\x91\xcf\x11", "WAV"),
    (0, b"fLaC", "FLAC"),
    (28, b"Speex", "Speex"),
    (29, b"FLAC", "FLAC in Ogg"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
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
    (4, b"styp", "MP4"),
    (4, b"moov", "MP4"),
    (4, b"moof", "MP4"),
    (4, b"mdat", "MP4"),
    (0, b"nut/", "NUT"),
    (0, b"\0\nSMJPEG", "SMJPEG"),
    (0, b"STRM", "AST"),
    (0, b"FWS", "Flash"),
    (0, b"CWS", "Flash"),
    (0, b"FORM", "AIFF or 8SVX"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b"OFR ", "OptimFROG"),
    (0, b"tBaK", "TAK"),
    (0, b"ajkg", "Shorten"),
    (0, b"LA04", "Lossless Audio"),
    (0, b"qoaf", "QOA"),
    (0, b"#!SILK", "SILK"),
    (0, b"\2#!SILK", "SILK"),
    (0, b"#!iLBC", "iLBC"),
    (0, b"\xfe\x7f\1\x80", "DTS"),
    (0, b"\x1f\xff\xe8\0", "DTS"),
    (0, b"\xff\x1f\0\xe8", "DTS"),
    (4, b"\xf8ro\xba", "TrueHD"),
    (4, b"\xf8ro\xbb", "MLP"),
    (0, b"r\xf8\x1fN", "S/PDIF"),
    (0, b"MThd", "MIDI"),
    (0, b"\0\0\1\xba", "an MPEG program stream"),
    (20, b"samplerate\0", "MATLAB"),
    (0, b"\xf0\x7e\0\1", "a MIDI sample dump"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF\r\n", "HDF5"),
    (0, b"SQLite format 3", "SQLite"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (0, b"Rar!\x1a\7", "RAR"),
    (0, b'\4"M\x18', "LZ4"),
    (0, b"\x89PNG\r\n", "a picture"),
    (0, b"\xff\xd8\xff", "a picture"),
    (0, b"%PDF-", "PDF"),
    (0, b"\x7fELF", "a program"),
)
"""The bytes that identify a container, each with their position."""
_LONGEST_MARK = 33
_MPC2K = b"\1\4"
_TRANSPORT_PACKET, _TRANSPORT_SYNC = 188, 0x47
_TEXT_BYTES, _LEAST_TEXT, _LEAST_LETTERS = 128, 16, 8
"""Characters that identify text, how many suffice at the end of a stream, and how many of them must be different."""
_UTF8_MARK = b"\xef\xbb\xbf"
_LATM_HEADER, _AC3_HEADER, _SBC_HEADER = 3, 6, 3
_AC3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_E_AC3_VERSIONS = range(11, 17)
_MSBC_BYTES = 57


def recognised(data: bytes) -> str | None:
    """What kind of data begins like this; None if it is unknown or may be PCM."""
    for place, mark, name in _MARKS:
        if data.startswith(mark, place):
            return name
    if is_htk(data):
        return "HTK"
    if data.startswith(_MPC2K) and _is_text(data[2:19].rstrip(b"\0")):
        return "MPC2K"
    for frame_bytes, header, count, name in _FRAMED:
        if _in_a_row(data, frame_bytes, header, count) == (count, 0):
            return name
    packets = data[: _transport_bytes(data) : _TRANSPORT_PACKET]
    if len(packets) == 3 and len({*packets}) == 1:
        return "an MPEG transport stream"
    return _text(data)


def decisive_bytes(data: bytes) -> int:
    """How many bytes are needed to recognise data that begins like this."""
    frames = (_in_a_row(data, frame_bytes, header, count)[1] for frame_bytes, header, count, _ in _FRAMED)
    return max(_LONGEST_MARK, *frames, _transport_bytes(data), _TEXT_BYTES if _is_text(data) else 0)


def _in_a_row(data: bytes, frame_bytes: Callable[[bytes], int], header: int, count: int) -> tuple[int, int]:
    """How many frames follow each other directly, up to `count`, and how many bytes show whether one more does."""
    position = 0
    for found in range(count):
        if len(data) < position + header:
            return found, position + header
        size = frame_bytes(data[position : position + header])
        if not size:
            return found, 0
        position += size
    return count, 0


def _ac3_bytes(head: bytes) -> int:
    """Length of the AC-3 or E-AC-3 frame that begins here; 0 if none does."""
    if head[:2] != b"\x0b\x77":
        return 0
    if head[5] >> 3 in _E_AC3_VERSIONS:
        return 2 * ((head[2] & 7) << 8 | head[3]) + 2
    rate, code = head[4] >> 6, head[4] & 63
    if rate == 3 or code >> 1 >= len(_AC3_KBPS):
        return 0
    kbps = _AC3_KBPS[code >> 1]
    return 2 * (2 * kbps, kbps * 320 // 147 + (code & 1), 3 * kbps)[rate]


def _latm_bytes(head: bytes) -> int:
    """Length of the AAC frame in LATM that begins here; 0 if none does."""
    if head[0] != 0x56 or head[1] >> 5 != 7:
        return 0
    return _LATM_HEADER + ((head[1] & 31) << 8 | head[2])


def _sbc_bytes(head: bytes) -> int:
    """Length of the SBC frame that begins here; 0 if none does."""
    if head[0] == 0xAD and head[1:3] == bytes(2):
        return _MSBC_BYTES
    if head[0] != 0x9C or head[2] < 2:
        return 0
    blocks, mode, bands, pool = 4 * (1 + (head[1] >> 4 & 3)), head[1] >> 2 & 3, 8 if head[1] & 1 else 4, head[2]
    channels = 2 if mode else 1
    bits = blocks * pool * (channels if mode < 2 else 1) + (bands if mode == 3 else 0)
    return 4 + bands * channels // 2 + -(-bits // 8)


_FRAMED: tuple[tuple[Callable[[bytes], int], int, int, str], ...] = (
    (mpeg.frame_bytes, mpeg.HEADER_BYTES, 2, "MP3 or AAC"),
    (_ac3_bytes, _AC3_HEADER, 2, "AC-3"),
    (_latm_bytes, _LATM_HEADER, 3, "AAC in LATM"),
    (_sbc_bytes, _SBC_HEADER, 5, "SBC"),
)
"""Codecs without a container: length of a frame, bytes of its header, frames in a row that PCM never makes, name."""


def _transport_bytes(data: bytes) -> int:
    """How many bytes, up to the third packet, show whether this is a transport stream; 0 if it is not one."""
    return 2 * _TRANSPORT_PACKET + 1 if data[:1] == bytes((_TRANSPORT_SYNC,)) else 0


def _is_text(data: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:_TEXT_BYTES])
    except UnicodeDecodeError:
        return False
    return len(text) > 1 and all(letter.isprintable() or letter in "\t\r\n\ufeff" for letter in text)


def _text(data: bytes) -> str | None:
    """The kind of text that begins like this: no PCM has 128 bytes, or is a shorter stream, of nothing but letters."""
    start = data[:_TEXT_BYTES].removeprefix(_UTF8_MARK)
    if not _is_text(data) or len(start) < _LEAST_TEXT or len({*start}) < _LEAST_LETTERS:
        return None
    word = start.lstrip().lower()
    if word.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if word.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    return "JSON" if word.startswith((b"{", b"[")) else "text"
