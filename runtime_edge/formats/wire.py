"""Frames (device to server) and replies (server to device).

A frame is a length, a positional MessagePack header, the payload and a CRC-32 of all of it. It carries one window, or
several that were made alike (same bundle, cut, width and encoding), whose payloads then follow each other. What the
subject (the device) or the bundle (shapes, scales) already says is not repeated. Nothing in a frame is executed; the
checksum and every length are checked before anything is used.

Version 2 is written. Version 1 (one window; checksum of the payload alone, in the header) is still read, because spools
and dead letters of earlier versions contain it, and is answered in version 1.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.errors import FrameError
from runtime_edge.formats.codec import ENCODINGS, STREAMS
from runtime_edge.formats.strict import UNREADABLE

SCHEMA_VERSION = 2
WIRE_ENCODINGS = (*ENCODINGS, *STREAMS)
"""Encodings by their number in a header."""
MAX_HEADER_BYTES = 48
"""Longest header of a frame with one window, including its length byte."""
CHECKSUM_BYTES = 4
MAX_WINDOWS = 64
"""The most windows in one frame."""
MAX_FRAME_BYTES = 8 << 20
MAX_REPLY_BYTES = 1 << 20
NO_MODEL = 0
"""Stands for a model's number in frames that do not carry one: version 1."""

_UNCERTAINTY_STEPS = 0xFFFF
_TWO_BYTES = 0x80
"""Set in the first byte of a length that takes two."""
_BEGINNING = b"\x9a\x02"
"""Start of a header of version 2: an array of ten, and the version."""

U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
U64 = Annotated[int, Meta(ge=0)]
WindowIndex = Annotated[int, Meta(ge=0, le=0xFFFFFFFFFF)]
Nanoseconds = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
ReplyStatus = Literal["ok", "retired", "refused", "foreign"]
"""ok: completed. retired: the server no longer completes this generation. refused: it cannot be completed. foreign: it
was made with a bundle that is not this server's."""


ReplyEncoding = Literal["float16", "int8"]


class FrameHeader(NamedTuple):
    """The header of one window's frame."""

    window: int
    capture_ns: int
    """Capture time of the window's last sample, ns since the epoch."""
    generation: int
    cut: int
    encoding: int
    """Index into WIRE_ENCODINGS."""
    compressed: bool
    uncertainty: float
    """Normalised to [0, 1]; in steps of 1/65535."""
    width: int = 0
    """Channels of the bottleneck that were kept; 0 for the plain activation."""
    model: int = NO_MODEL
    """The first 8 bytes of the digest of the model that made it (`model_id.model_number`), big-endian."""
    version: int = SCHEMA_VERSION


class _Further(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A further window of a frame."""

    window: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
    """Index, relative to the previous window."""
    capture_ns: Nanoseconds
    """Capture time, relative to the first window."""
    uncertainty: U16
    bytes: U32
    """Size of its payload."""


class _WireHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Version 2. The first window's payload is what the further windows leave over."""

    version: Annotated[int, Meta(ge=2, le=2)]
    model: U64
    generation: U32
    cut: U16
    width: U16
    coding: Annotated[int, Meta(ge=0, le=2 * len(WIRE_ENCODINGS) - 1)]
    """2 * encoding + compressed."""
    window: WindowIndex
    capture_ns: Nanoseconds
    uncertainty: U16
    further: Annotated[tuple[_Further, ...], Meta(max_length=MAX_WINDOWS - 1)] = ()


class _WireHeaderV1(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Version 1."""

    version: Annotated[int, Meta(ge=1, le=1)]
    window: WindowIndex
    capture_ns: Nanoseconds
    generation: U32
    cut: U16
    encoding: Annotated[int, Meta(ge=0, le=len(WIRE_ENCODINGS) - 1)]
    compressed: bool
    uncertainty: Annotated[float, Meta(ge=0.0, le=1.0)]
    crc32: U32


class Reply(msgspec.Struct, frozen=True):
    """The server's answer to one window."""

    window: int
    generation: int
    """The server's newest generation."""
    status: ReplyStatus
    server_us: int = 0
    """Time from the frame's arrival at the server process to this reply, µs."""
    embedding: bytes = b""
    """d values, encoded as `encoding` says; empty unless the status is ok."""
    encoding: ReplyEncoding = "float16"
    """float16: little-endian. int8: a little-endian float32 step size, then the steps."""
    mixture: bytes = b""
    """Refined mixture parameters, all or only those that have moved, when due (docs/method.md, section 4)."""

    def vector(self, dim: int) -> npt.NDArray[np.float32] | None:
        """The embedding, (dim,) float32; None if there is none of that length."""
        if self.encoding == "float16":
            return np.frombuffer(self.embedding, "<f2").astype(np.float32) if len(self.embedding) == 2 * dim else None
        if len(self.embedding) != 4 + dim:
            return None
        steps = np.frombuffer(self.embedding, "i1", offset=4).astype(np.float32)
        scaled: npt.NDArray[np.float32] = steps * np.frombuffer(self.embedding, "<f4", 1)
        return scaled


def int8_embedding(embedding: npt.NDArray[np.float32]) -> bytes:
    """An embedding (d,) in a reply's int8 encoding: 4 + d bytes. A step is 1/127 of the largest value."""
    step = np.array(max(float(np.abs(embedding).max()), 1e-30) / 127, "<f4")
    return bytes(step.tobytes() + np.rint(embedding / step).astype(np.int8).tobytes())


class _Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    window: WindowIndex
    embedding: Annotated[bytes, Meta(max_length=1 << 17)] = b""


class _Replies(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Version 2: one message for all windows of a frame."""

    version: Annotated[int, Meta(ge=2, le=2)]
    generation: U32
    status: ReplyStatus
    server_us: Annotated[int, Meta(ge=0, le=1 << 53)]
    encoding: Annotated[int, Meta(ge=0, le=1)]
    """0 for float16, 1 for int8."""
    answers: Annotated[tuple[_Answer, ...], Meta(min_length=1, max_length=MAX_WINDOWS)]
    mixture: Annotated[bytes, Meta(max_length=1 << 19)] = b""


class _ReplyV1(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Version 1: one window."""

    version: Annotated[int, Meta(ge=1, le=1)]
    window: WindowIndex
    generation: U32
    status: Literal["ok", "retired", "refused"]
    server_us: Annotated[int, Meta(ge=0, le=1 << 53)]
    embedding: Annotated[bytes, Meta(max_length=1 << 17)] = b""
    mixture: Annotated[bytes, Meta(max_length=1 << 19)] = b""


_REPLY_ENCODINGS: tuple[ReplyEncoding, ...] = ("float16", "int8")
_header_decoders: dict[int, msgspec.msgpack.Decoder[_WireHeaderV1] | msgspec.msgpack.Decoder[_WireHeader]] = {
    1: msgspec.msgpack.Decoder(_WireHeaderV1),
    2: msgspec.msgpack.Decoder(_WireHeader),
}
_reply_decoders: dict[int, msgspec.msgpack.Decoder[_ReplyV1] | msgspec.msgpack.Decoder[_Replies]] = {
    1: msgspec.msgpack.Decoder(_ReplyV1),
    2: msgspec.msgpack.Decoder(_Replies),
}
_encoder = msgspec.msgpack.Encoder()


def encode_frame(
    window: int,
    capture_ns: int,
    generation: int,
    cut: int,
    encoding: str,
    compressed: bool,
    uncertainty: float,
    payload: bytes | memoryview,
    model: int = NO_MODEL,
    width: int = 0,
) -> bytes:
    """One frame with one window, with the fields of a FrameHeader; the payload is copied once."""
    coding = 2 * WIRE_ENCODINGS.index(encoding) + compressed
    header = _WireHeader(SCHEMA_VERSION, model, generation, cut, width, coding, window, capture_ns, _steps(uncertainty))
    return _frame(header, payload)


def encode_frames(windows: Sequence[tuple[FrameHeader, bytes | memoryview]]) -> bytes:
    """One frame with 1 to MAX_WINDOWS windows, in the order of their indices.

    Raises FrameError unless all have one generation, model, cut, width, encoding and compression.
    """
    if not 1 <= len(windows) <= MAX_WINDOWS:
        raise FrameError(f"{len(windows)} windows; a frame carries 1 to {MAX_WINDOWS}")
    first = windows[0][0]
    if len({header[2:6] + header[7:] for header, _ in windows}) > 1:
        raise FrameError("windows of one frame are of one generation, model, cut, width and encoding")
    further, before = [], first.window
    for header, payload in windows[1:]:
        if header.window <= before or header.capture_ns < first.capture_ns:
            raise FrameError("the windows of a frame are not in their order")
        since = header.capture_ns - first.capture_ns
        further.append(_Further(header.window - before, since, _steps(header.uncertainty), len(payload)))
        before = header.window
    return _frame(_header_of(first, tuple(further)), b"".join(payload for _, payload in windows))


def decode_frame(frame: bytes) -> list[tuple[FrameHeader, bytes]]:
    """Header and payload of each window. Raises FrameError for anything this version cannot read."""
    if not 2 <= len(frame) <= MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(frame)} bytes; expected 2 to {MAX_FRAME_BYTES}")
    start, length = 1, frame[0]
    if length & _TWO_BYTES:
        start, length = 2, (length & ~_TWO_BYTES) << 8 | frame[1]
    stop = start + length
    if length < 2 or stop > len(frame):
        raise FrameError(f"frame header of {length} bytes does not fit")
    version = frame[start + 1]
    if version not in _header_decoders:
        raise FrameError(f"frame version {version}; this server reads {', '.join(map(str, _header_decoders))}")
    try:
        header = _header_decoders[version].decode(memoryview(frame)[start:stop])
    except UNREADABLE as exc:
        raise FrameError(f"frame header: {exc}") from None
    if isinstance(header, _WireHeaderV1):
        return [_read_v1(header, frame[stop:])]
    if stop + CHECKSUM_BYTES > len(frame) or not is_whole(frame):
        raise FrameError(f"frame of window {header.window}: its checksum does not match")
    return _read(header, frame[stop:-CHECKSUM_BYTES])


def has_checksum(frame: bytes) -> bool:
    """Whether this begins like a frame of version 2, which ends with a checksum of the bytes before it."""
    return frame[1:3] == _BEGINNING or frame[2:4] == _BEGINNING


def is_whole(frame: bytes) -> bool:
    """Whether the checksum at the end of a frame with `has_checksum` matches."""
    checked = zlib.crc32(memoryview(frame)[1 if frame[0] < _TWO_BYTES else 2 : -CHECKSUM_BYTES])
    return checked == int.from_bytes(frame[-CHECKSUM_BYTES:], "little")


def encode_reply(reply: Reply, version: int = SCHEMA_VERSION) -> bytes:
    """MessagePack bytes of the reply to one window, in the version of the frame that it answers."""
    if version == 1:
        status: Literal["ok", "retired", "refused"] = "refused" if reply.status == "foreign" else reply.status
        old = _ReplyV1(1, reply.window, reply.generation, status, reply.server_us, reply.embedding, reply.mixture)
        return _encoder.encode(old)
    return encode_replies([reply])


def encode_replies(replies: Sequence[Reply]) -> bytes:
    """One message for the windows of one frame, whose replies differ only in window and embedding."""
    first = replies[0]
    coding = _REPLY_ENCODINGS.index(first.encoding)
    answers = tuple(_Answer(reply.window, reply.embedding) for reply in replies)
    mixture = next((reply.mixture for reply in replies if reply.mixture), b"")
    packed = _Replies(2, first.generation, first.status, first.server_us, coding, answers, mixture)
    return _encoder.encode(packed)


def decode_replies(data: bytes) -> list[Reply]:
    """The reply to each window; the first carries the mixture parameters. Raises FrameError."""
    if not 2 <= len(data) <= MAX_REPLY_BYTES:
        raise FrameError(f"reply of {len(data)} bytes; 2 to {MAX_REPLY_BYTES} are read")
    if data[1] not in _reply_decoders:
        raise FrameError(f"reply version {data[1]}; this device reads {', '.join(map(str, _reply_decoders))}")
    try:
        found = _reply_decoders[data[1]].decode(data)
    except UNREADABLE as exc:
        raise FrameError(f"reply: {exc}") from None
    if isinstance(found, _ReplyV1):
        fields = {name: getattr(found, name) for name in found.__struct_fields__ if name != "version"}
        return [Reply(**fields)]
    return [
        Reply(
            window=answer.window,
            generation=found.generation,
            status=found.status,
            server_us=found.server_us,
            embedding=answer.embedding,
            encoding=_REPLY_ENCODINGS[found.encoding],
            mixture=b"" if place else found.mixture,
        )
        for place, answer in enumerate(found.answers)
    ]


def _header_of(header: FrameHeader, further: tuple[_Further, ...] = ()) -> _WireHeader:
    return _WireHeader(
        SCHEMA_VERSION,
        header.model,
        header.generation,
        header.cut,
        header.width,
        2 * header.encoding + header.compressed,
        header.window,
        header.capture_ns,
        _steps(header.uncertainty),
        further,
    )


def _steps(uncertainty: float) -> int:
    return round(min(max(uncertainty, 0.0), 1.0) * _UNCERTAINTY_STEPS)


def _frame(header: _WireHeader, payload: bytes | memoryview) -> bytes:
    packed = _encoder.encode(header)
    length = len(packed)
    start = bytes((length,)) if length < _TWO_BYTES else bytes((_TWO_BYTES | length >> 8, length & 0xFF))
    checksum = zlib.crc32(payload, zlib.crc32(packed))
    return b"".join((start, packed, payload, checksum.to_bytes(CHECKSUM_BYTES, "little")))


def _read(header: _WireHeader, payloads: bytes) -> list[tuple[FrameHeader, bytes]]:
    encoding, is_compressed = divmod(header.coding, 2)
    _check_coding(header.window, encoding, bool(is_compressed))
    first = FrameHeader(
        header.window,
        header.capture_ns,
        header.generation,
        header.cut,
        encoding,
        bool(is_compressed),
        header.uncertainty / _UNCERTAINTY_STEPS,
        header.width,
        header.model,
    )
    if not header.further:
        return [(first, payloads)]
    start = len(payloads) - sum(part.bytes for part in header.further)
    if start < 0:
        raise FrameError(f"frame of window {header.window}: shorter than its windows' payloads")
    window, found = header.window, [(first, payloads[:start])]
    for part in header.further:
        window += part.window
        at, uncertainty = header.capture_ns + part.capture_ns, part.uncertainty / _UNCERTAINTY_STEPS
        payload = payloads[start : start + part.bytes]
        found.append((first._replace(window=window, capture_ns=at, uncertainty=uncertainty), payload))
        start += part.bytes
    return found


def _read_v1(header: _WireHeaderV1, payload: bytes) -> tuple[FrameHeader, bytes]:
    if zlib.crc32(payload) != header.crc32:
        raise FrameError(f"frame of window {header.window}: its checksum does not match")
    _check_coding(header.window, header.encoding, header.compressed)
    fields = (header.window, header.capture_ns, header.generation, header.cut, header.encoding, header.compressed)
    return FrameHeader(*fields, header.uncertainty, version=1), payload


def _check_coding(window: int, encoding: int, compressed: bool) -> None:
    if compressed and WIRE_ENCODINGS[encoding] in STREAMS:
        raise FrameError(f"frame of window {window}: a stream of audio that says it is a zstd frame")
