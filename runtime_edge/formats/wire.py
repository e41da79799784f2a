"""Frames (device to server) and replies (server to device).

A frame is one length byte, a positional MessagePack header (the two together at most 48 bytes) and the payload.
What the subject (the device) or the bundle (shapes, scales) already says is not repeated. Nothing in a frame is
executed; every length is checked before it is used, and the payload's CRC-32 before it is decoded.
"""

from __future__ import annotations

import zlib
from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.errors import FrameError
from runtime_edge.formats.codec import ENCODINGS, STREAMS
from runtime_edge.formats.strict import UNREADABLE

SCHEMA_VERSION = 1
WIRE_ENCODINGS = (*ENCODINGS, *STREAMS)
"""By their number in a header."""
MAX_HEADER_BYTES = 48
MAX_FRAME_BYTES = 8 << 20
MAX_REPLY_BYTES = 1 << 20

U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]


class FrameHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a device says of one window."""

    version: Annotated[int, Meta(ge=1, le=127)]
    window: Annotated[int, Meta(ge=0, le=0xFFFFFFFFFF)]
    capture_ns: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    """Capture time of the window's last sample, ns since the epoch."""
    generation: U32
    cut: U16
    encoding: Annotated[int, Meta(ge=0, le=len(WIRE_ENCODINGS) - 1)]
    compressed: bool
    uncertainty: Annotated[float, Meta(ge=0.0, le=1.0)]
    crc32: U32


class Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the server answers to a frame."""

    version: Annotated[int, Meta(ge=1, le=127)]
    window: Annotated[int, Meta(ge=0, le=0xFFFFFFFFFF)]
    generation: U32
    """The server's newest generation."""
    status: Annotated[str, Meta(pattern=r"^(ok|retired|refused)\Z")]
    server_us: Annotated[int, Meta(ge=0, le=(1 << 53))]
    """From the frame's arrival at the server process to this reply, µs."""
    embedding: Annotated[bytes, Meta(max_length=1 << 17)] = b""
    """float16, little-endian, d values; empty unless status is ok."""
    mixture: Annotated[bytes, Meta(max_length=1 << 19)] = b""
    """Refined mixture parameters when they are due (docs/method.md, section 4)."""


_header_decoder = msgspec.msgpack.Decoder(FrameHeader)
_reply_decoder = msgspec.msgpack.Decoder(Reply)
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
) -> bytes:
    """One frame; the payload is copied once."""
    header = _encoder.encode(
        FrameHeader(
            SCHEMA_VERSION,
            window,
            capture_ns,
            generation,
            cut,
            WIRE_ENCODINGS.index(encoding),
            compressed,
            uncertainty,
            zlib.crc32(payload),
        )
    )
    return b"".join((bytes((len(header),)), header, payload))


def decode_frame(frame: bytes) -> tuple[FrameHeader, bytes]:
    """Header and payload. Raises FrameError for anything this version cannot read."""
    if not 2 <= len(frame) <= MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(frame)} bytes; expected 2 to {MAX_FRAME_BYTES}")
    length = frame[0]
    if length + 1 > MAX_HEADER_BYTES or length + 1 > len(frame):
        raise FrameError(f"frame header of {length} bytes does not fit")
    try:
        header = _header_decoder.decode(memoryview(frame)[1 : 1 + length])
    except UNREADABLE as exc:
        raise FrameError(f"frame header: {exc}") from None
    if header.version != SCHEMA_VERSION:
        raise FrameError(f"frame version {header.version}; this server reads {SCHEMA_VERSION}")
    payload = frame[1 + length :]
    if zlib.crc32(payload) != header.crc32:
        raise FrameError(f"frame of window {header.window}: checksum of the payload does not match")
    return header, payload


def encode_reply(reply: Reply) -> bytes:
    """MessagePack bytes of a reply."""
    return _encoder.encode(reply)


def decode_reply(data: bytes) -> Reply:
    """Raises FrameError."""
    if len(data) > MAX_REPLY_BYTES:
        raise FrameError(f"reply of {len(data)} bytes; at most {MAX_REPLY_BYTES} are read")
    try:
        reply = _reply_decoder.decode(data)
    except UNREADABLE as exc:
        raise FrameError(f"reply: {exc}") from None
    if reply.version != SCHEMA_VERSION:
        raise FrameError(f"reply version {reply.version}; this device reads {SCHEMA_VERSION}")
    return reply
