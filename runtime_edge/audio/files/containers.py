"""The length that a container states, compared with the file.

A recorder that lost power, a pipe, or a file beyond 4 GiB leaves a wrong length, and libsndfile then reads too little
or nothing. `examine` detects this and says which bytes of the header must be replaced; `PatchedFile` reads the file
with these bytes replaced.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from runtime_edge.audio.files import mpeg
from runtime_edge.audio.files.ogg import ogg_end
from runtime_edge.audio.files.rare_containers import rare_length

_MAX_CHUNKS = 1_000
_MAX_CHUNK_BYTES = 1 << 16
_FLAC_LENGTH = 21
"""Position in a FLAC file of the four low bits and four bytes that hold its number of frames."""
_UNKNOWN = 0xFFFF_FFFF
_FAR, _FAR_ZEROS = 64, 128
"""How many times its length an open-ended file seems to have, and how many zeros can be read at its seeming end."""
_BEHIND_AUDIO = frozenset(
    b"LIST guan bext iXML id3\x20 ID3\x20 cue\x20 smpl fact JUNK junk PAD\x20 FLLR axml cart afsp levl PEAK acid inst "
    b"_PMX DISP wamd minf elm1 regn umid COMT MARK INST NAME AUTH ANNO APPL (c)\x20 MIDI FVER info free strg mark pakt "
    b"kuki chan uuid edct midi ovvw list summ".split(b" ")
)
_TAGS = (b"TAG", b"ID3", b"APETAGEX")


class Container(msgspec.Struct, frozen=True):
    """A file's container, as far as its length goes."""

    wrong: str | None = None
    """What is wrong with the length, in words; None if nothing."""
    patches: dict[int, bytes] = {}
    """Bytes to read in place of the file's own, by position."""
    frames: int | None = None
    """The number of frames that a FLAC file states; None if it states none, and for other formats."""
    open_end: bool = False
    """Whether libsndfile would guess the length and stop there; `PatchedFile` must then hide where the file ends."""
    decode_for_length: bool = False
    """Whether the length that libsndfile states is a guess, or exceeds what the file holds."""
    end: int | None = None
    """Where the file must seem to end, if a tag or an incomplete sample follows. None for its real end."""
    unread: str | None = None
    """Which part of the file is not read, in words."""


class _Chunks(NamedTuple):
    """How a container writes its chunks."""

    first: int
    header: struct.Struct
    """Layout of a chunk's header: its name, its length."""
    audio: bytes
    """The first four bytes of the name of the chunk that holds the samples."""
    align: int = 2
    counts_header: bool = False


_WAV = _Chunks(12, struct.Struct("<4sI"), b"data")
_SVX = _Chunks(12, struct.Struct(">4sI"), b"BODY")
_CHUNKS = {
    (b"RIFF", b"WAVE"): _WAV,
    (b"RF64", b"WAVE"): _WAV,
    (b"BW64", b"WAVE"): _WAV,
    (b"RIFX", b"WAVE"): _Chunks(12, struct.Struct(">4sI"), b"data"),
    (b"FORM", b"AIFF"): _Chunks(12, struct.Struct(">4sI"), b"SSND"),
    (b"FORM", b"AIFC"): _Chunks(12, struct.Struct(">4sI"), b"SSND"),
    (b"FORM", b"8SVX"): _SVX,
    (b"FORM", b"16SV"): _SVX,
}
_MAGICS = frozenset([*(magic for magic, _ in _CHUNKS), b"riff"])
_W64 = _Chunks(40, struct.Struct("<16sq"), b"data", align=8, counts_header=True)
_CAF = _Chunks(8, struct.Struct(">4sq"), b"data", align=1)


def examine(path: Path) -> Container:
    """Compare the length that a file states with the file. Raises OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_FLAC_LENGTH + 5)
        if head[:4] == b"fLaC":
            return _flac(file, head, size)
        if head[:4] == b"OggS":
            return _ogg(file, size)
        if head[:4] in (b".snd", b"dns."):
            return _au(head, size)
        if head[:3] == b"ID3" or head[:1] == b"\xff":
            return _mpeg(file, size)
        kind = _CHUNKS.get((head[:4], head[8:12]))
        if head[:4] == b"riff":
            kind = _W64
        elif head[:4] == b"caff":
            kind = _CAF
        found = _rare(file, size) if kind is None else _chunked(file, head[:4], size, kind)
        if head[:4] == b"BW64":  # the later name of RF64 (ITU-R BS.2088), which libsndfile does not know
            found = msgspec.structs.replace(found, patches=found.patches | {0: b"RF64"})
        return found


def chunk(path: Path, name: bytes) -> bytes | None:
    """The contents of a WAV file's first chunk of this name, up to 64 KiB; None if there is none. Raises OSError."""
    with path.open("rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(12)
        kind = _CHUNKS.get((head[:4], head[8:12]))
        for found, begin, length in _walk(file, kind.first, size, kind) if kind is not None else ():
            if found == name:
                file.seek(begin)
                return file.read(min(length, _MAX_CHUNK_BYTES))
    return None


def _flac(file: BinaryIO, head: bytes, size: int) -> Container:
    """A FLAC is read to its last frame, then compared with the length it states. Tags after it are not audio."""
    if len(head) < _FLAC_LENGTH + 5:
        return Container()
    low = head[_FLAC_LENGTH]
    frames = int.from_bytes(bytes((low & 15,)) + head[_FLAC_LENGTH + 1 :], "big")
    patches = {_FLAC_LENGTH: bytes((low & 0xF0, 0, 0, 0, 0))}
    end = mpeg.before_tags(file, size)
    return Container(patches=patches, frames=frames or None, end=None if end == size else end)


def _rare(file: BinaryIO, size: int) -> Container:
    length = rare_length(file, size)
    if length is None:
        return Container()
    wrong = None if length.stated == length.held else _wrong(length.stated, length.held)
    return Container(wrong, dict(length.patches), end=length.end, unread=length.unread)


def _ogg(file: BinaryIO, size: int) -> Container:
    """A stream that was closed ends with a whole page marked as the last."""
    found = ogg_end(file, size)
    if found.again:
        return Container(unread="another stream follows the first: it is not read, take them apart")
    if found.closed:
        return Container()
    return Container(
        "its last page is missing", dict(found.patches), end=found.end, decode_for_length=bool(found.patches)
    )


def _mpeg(file: BinaryIO, size: int) -> Container:
    """Without a stated length, libsndfile would guess it from the first frame's bit rate; of several files
    joined together it would read only the first.
    """
    length = mpeg.stated_length(file)
    if length is None:
        return _rare(file, size)
    if length.tag_at is None:
        return Container(open_end=True, decode_for_length=True)
    if length.stated is None or not mpeg.goes_on(file, length.begin + length.stated):
        return Container()
    return Container(_wrong(length.stated, size - length.begin), {length.tag_at: bytes(4)}, True, True)


def _au(head: bytes, size: int) -> Container:
    if len(head) < 12:
        return Container()
    order = ">" if head[:4] == b".snd" else "<"
    begin, stated = struct.unpack(f"{order}II", head[4:12])
    if stated in (_UNKNOWN, size - begin) or begin >= size:
        return Container()
    return Container(_wrong(stated, size - begin), {8: struct.pack(">I", _UNKNOWN)})


def _chunked(file: BinaryIO, magic: bytes, size: int, kind: _Chunks) -> Container:
    long_length, frame_bytes = None, 1
    for name, begin, stated in _walk(file, kind.first, size, kind):
        if name == b"ds64" and magic in (b"RF64", b"BW64"):
            file.seek(begin)
            long_length = begin + 8, struct.unpack("<qq", file.read(16).ljust(16, b"\0"))[1]
        elif name == b"fmt ":
            file.seek(begin)
            frame_bytes = struct.unpack_from(f"{_order(magic)}H", file.read(14).ljust(14, b"\0"), 12)[0] or 1
        if name[:4] != kind.audio:
            continue
        if long_length is not None and stated == _UNKNOWN:
            stated = long_length[1]
        held = size - begin
        if kind is _CAF and stated == -1:  # the format allows this, but not every libsndfile reads it
            return Container(None, _patches(kind, magic, begin, held, None))
        whole = 0 <= stated < held and not stated % frame_bytes and _only_chunks(file, begin + stated, size, kind)
        if held <= 0 or stated == held or whole:
            return Container()
        at = None if long_length is None else long_length[0]
        return Container(_wrong(stated, held), _patches(kind, magic, begin, held, at))
    return Container()


def _order(magic: bytes) -> str:
    return ">" if magic == b"RIFX" else "<"


def _wrong(stated: int, held: int) -> str:
    return f"its header states {max(stated, 0):,} bytes of audio, and {held:,} are there"


def _patches(kind: _Chunks, magic: bytes, begin: int, held: int, long_length_at: int | None) -> dict[int, bytes]:
    """The patches that make libsndfile read the audio from `begin` to the end of the file."""
    if kind is _W64:
        return {begin - 8: struct.pack("<q", held + kind.header.size)}
    if kind is _CAF:
        return {begin - 8: struct.pack(">q", held)}
    if kind is _SVX:
        return {begin - 4: struct.pack(">I", min(held, _UNKNOWN))}
    if magic == b"FORM":
        return {begin - 4: bytes(4)}
    if long_length_at is not None:
        return {long_length_at: struct.pack("<q", held), begin - 4: struct.pack("<I", _UNKNOWN)}
    # Make it look like a WAV that was never closed: libsndfile reads that to the end of the file, even beyond 4 GiB.
    return {4: struct.pack(f"{_order(magic)}I", 8), begin - 4: bytes(4)}


def _walk(file: BinaryIO, position: int, size: int, kind: _Chunks) -> Iterator[tuple[bytes, int, int]]:
    """Name, position of the contents and stated length of each chunk, starting at `position`."""
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        if len(head := file.read(kind.header.size)) < kind.header.size:
            return
        name, length = kind.header.unpack(head)
        if kind.counts_header:
            length -= kind.header.size
        position += kind.header.size
        yield name, position, length
        if not 0 <= length <= size - position:
            return
        position += length + -length % kind.align


def _only_chunks(file: BinaryIO, position: int, size: int, kind: _Chunks) -> bool:
    """Whether only chunks or a tag follow the audio, rather than more audio."""
    padding = -(position - kind.first) % kind.align
    file.seek(position)
    if file.read(padding).strip(b"\0"):
        return False
    position += padding
    rest = file.read(kind.header.size)
    if rest.startswith(_TAGS):
        return True
    if len(rest) < kind.header.size:
        return not rest.strip(b"\0")
    for name, begin, length in _walk(file, position, size, kind):
        if name[:4] in _MAGICS:  # another recording
            return False
        known = name[:4] in _BEHIND_AUDIO  # perhaps cut short, but certainly not audio
        text = name[:4].isascii() and name[:4].decode().isprintable()
        if not known and not (text and 0 <= length <= size - begin):
            return False
    return True


class PatchedFile(io.RawIOBase):
    """A file read with some bytes replaced.

    Args:
        path: the file.
        patches: bytes by position.
        open_end: whether it seems to go on for long; nothing can be read there but some zeros at the very end.
        end: where it seems to end; None for its real end.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(
        self, path: Path, patches: Mapping[int, bytes], open_end: bool = False, end: int | None = None
    ) -> None:
        self._file, self._patches = path.open("rb", buffering=0), patches
        size = os.fstat(self._file.fileno()).st_size if end is None else end
        self._end = size * _FAR if open_end else size
        self._path = path

    def __repr__(self) -> str:
        """The file's name, for error messages of libraries."""
        return repr(os.fsencode(self._path))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As in any file; the position stays unchanged when a damaged header asks for one that does not exist."""
        if whence == io.SEEK_END:
            offset, whence = self._end + offset, io.SEEK_SET
        try:
            return self._file.seek(offset, whence)
        except (OSError, OverflowError):
            return self._file.tell()

    def tell(self) -> int:
        """As in any file."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """As in any file, with the patches; a disk error counts as the end of the file."""
        begin = self._file.tell()
        view = memoryview(buffer).cast("B")[: max(0, self._end - begin)]
        try:
            size = self._file.readinto(view)
        except OSError:
            return 0
        if not size and self._end - _FAR_ZEROS <= begin < self._end:
            size = min(len(view), self._end - begin)
            view[:size] = bytes(size)
            self._file.seek(begin + size)
        for at, patch in self._patches.items():
            for place, byte in enumerate(patch, at - begin):
                if 0 <= place < size:
                    view[place] = byte
        return size
