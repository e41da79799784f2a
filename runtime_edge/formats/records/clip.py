"""How a clip that a device has kept comes to the server: piece by piece, each on request."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.errors import FormatError
from runtime_edge.formats.strict import Name, Strict, decode

MAX_CLIP_BYTES = 1 << 20
PIECE_BYTES = 8 << 10
"""A slow link is not occupied for long, and frames go between two pieces."""
_MAX_REQUEST_BYTES = 4 << 10
_MAX_PIECE_BYTES = PIECE_BYTES + 256

_Asked = Annotated[str, Meta(pattern=r"^[a-z0-9]{1,32}\Z")]
_Bytes = Annotated[int, Meta(ge=0, le=MAX_CLIP_BYTES)]


class ClipRequest(Strict, frozen=True, kw_only=True):
    """Asks for a piece of the clip of a label that went on."""

    asked: _Asked
    """Chosen by the server; the piece repeats it."""
    label: Name
    since: Annotated[float, Meta(ge=0, le=1e11)]
    """When the label was first detected, as its event says, s since 1970."""
    offset: _Bytes = 0
    """First byte of the piece."""

    @classmethod
    def decode(cls, data: bytes) -> ClipRequest:
        """Read a request. Raises FormatError."""
        return decode(data, cls, "a request for a clip", _MAX_REQUEST_BYTES, form="MessagePack")

    def encode(self) -> bytes:
        """The request as MessagePack."""
        return msgspec.msgpack.encode(self)


class ClipPiece(Strict, frozen=True, kw_only=True):
    """A piece of a clip's file; the last one ends at `size`."""

    asked: _Asked
    offset: _Bytes
    size: _Bytes
    """Bytes of the whole clip; 0 if there is none."""
    data: Annotated[bytes, Meta(max_length=PIECE_BYTES)] = b""

    def __post_init__(self) -> None:
        if len(self.data) != min(PIECE_BYTES, max(0, self.size - self.offset)):
            raise FormatError(f"data: {len(self.data)} bytes at {self.offset} of {self.size}")

    @classmethod
    def decode(cls, data: bytes) -> ClipPiece:
        """Read a piece. Raises FormatError."""
        return decode(data, cls, "a piece of a clip", _MAX_PIECE_BYTES, form="MessagePack")

    def encode(self) -> bytes:
        """The piece as MessagePack."""
        return msgspec.msgpack.encode(self)
