"""The signed envelope of tables, heads, releases and adaptations: which key each is for, and which one is newer.

The signed text is one JSON document, `{format, kind, key, number, body}`. `key` is the bucket key that the record is
for, so it cannot be moved to another one; `number` only grows, so an older record cannot be put back
(`runtime_edge.formats.records.numbers`).

    data = seal("table", "_all.rpi4", number, table.to_json(), secret)
    record = open_record(data, "table", "_all.rpi4", trusted, "table _all.rpi4")
    table = SplitterTable.from_json(record.body, "table _all.rpi4")

Records of earlier versions have no number and are read as number 0. An adaptation is stored as a zstd frame, because
devices pay for each byte of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from runtime_edge.base.zstd import (
    ZstdCompressor,
    ZstdDecompressor,
    ZstdError,
    compress_frame,
    decompress_frame,
    get_frame_info,
)
from runtime_edge.errors import FormatError, HeadError, SignatureError, TableError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.records.adaptation import MAX_ADAPTATION_BYTES
from runtime_edge.formats.records.head import MAX_HEAD_BYTES
from runtime_edge.formats.records.table import MAX_TABLE_BYTES
from runtime_edge.formats.strict import Name, Strict, decode

MAX_NUMBER = 1 << 53
Kind = Literal["table", "head", "release", "adaptation"]
Number = Annotated[int, Meta(ge=1, le=MAX_NUMBER)]


class _About(NamedTuple):
    """What differs between the kinds."""

    bucket: str
    limit_bytes: int
    """Size limit; a body is text inside JSON, which takes up to twice its size."""
    error: type[FormatError]
    compressed: bool = False
    """Whether values are zstd frames."""


_LEVEL = 19
ABOUT: dict[Kind, _About] = {
    "table": _About(subjects.TABLES, 2 * MAX_TABLE_BYTES + 4096, TableError),
    "head": _About(subjects.HEADS, 2 * MAX_HEAD_BYTES + 4096, HeadError),
    "release": _About(subjects.RELEASES, 128 << 10, FormatError),
    "adaptation": _About(subjects.ADAPTATIONS, 2 * MAX_ADAPTATION_BYTES + 4096, FormatError, compressed=True),
}


class _Envelope(Strict, frozen=True, kw_only=True):
    """The text that is signed."""

    format: Literal["streamsplit.record/2"] = "streamsplit.record/2"
    kind: Kind
    key: Name
    number: Number
    body: msgspec.Raw


class _Signed(Strict, frozen=True, kw_only=True):
    """The value of a key."""

    record: str
    signature: str = ""


class _SignedTable(Strict, frozen=True, kw_only=True):
    """The value of a key in `tables`, until 0.1.0."""

    table: str
    signature: str = ""


class _SignedHead(Strict, frozen=True, kw_only=True):
    """The value of a key in `heads`, until 0.1.0."""

    head: str
    signature: str = ""


class _AnyVersion(msgspec.Struct):
    record: str | None = None


@dataclass(frozen=True)
class Record:
    """A record whose signature has been checked, if a key is trusted."""

    kind: Kind
    key: str
    number: int
    """0 for a record of an earlier version."""
    body: bytes
    """JSON of the table, head, release or adaptation."""
    digest: str
    """`sha256:<hex>` of the signed text."""

    @property
    def name(self) -> str:
        """Kind and key in one string."""
        return f"{self.kind} {self.key}"


def seal(kind: Kind, key: str, number: int, body: bytes, secret: minisign.SecretKey | None) -> bytes:
    """The value to store under `key`: JSON `body` with its number, signed if there is a secret key."""
    envelope = _Envelope(kind=kind, key=key, number=number, body=msgspec.Raw(body.strip()))
    text = msgspec.json.encode(envelope)
    signature = "" if secret is None else minisign.sign(text, secret, _comment(envelope))
    value = msgspec.json.encode(_Signed(record=text.decode(), signature=signature))
    return compress_frame(ZstdCompressor(level=_LEVEL), value) if ABOUT[kind].compressed else value


def open_record(data: bytes, kind: Kind, key: str | None, trusted: minisign.PublicKey | None, source: str) -> Record:
    """Check the value of a key and take the record out of its envelope; with `key` it must be for that very key.

    With `trusted` an unsigned record is refused, except a release of an earlier version, which never was signed: the
    device then relies only on the manifest's signature, and accepts only newer generations.

    Raises SignatureError or the kind's error, one line that names `source` and the field.
    """
    about = ABOUT[kind]
    if about.compressed:
        data = _unpacked(data, about, source)
    elif decode(data, _AnyVersion, source, about.limit_bytes, about.error).record is None:
        return _open_earlier(data, kind, key, trusted, source)
    signed = decode(data, _Signed, source, about.limit_bytes, about.error)
    text = _utf8(signed.record, about, source)
    comment = _verify(text, signed.signature, kind, trusted, source)
    envelope = decode(text, _Envelope, source, about.limit_bytes, about.error)
    if comment is not None and comment != _comment(envelope):
        raise SignatureError(f"{source}: the trusted comment says {comment!r}, not {_comment(envelope)!r}")
    if envelope.kind != kind:
        raise about.error(f"{source}: kind: a {envelope.kind}, expected a {kind}")
    if key is not None and envelope.key != key:
        raise about.error(f"{source}: key: made for {envelope.key!r}, not for {key!r}; push it there again")
    return Record(kind, envelope.key, envelope.number, bytes(envelope.body), _digest(text))


def _unpacked(data: bytes, about: _About, source: str) -> bytes:
    """The content of a zstd frame, at most the kind's limit."""
    try:
        size = get_frame_info(data).decompressed_size
        if size is not None and size > about.limit_bytes:
            raise about.error(f"{source}: unpacks to {size} bytes, more than {about.limit_bytes}")
        found = None if size is None else decompress_frame(ZstdDecompressor(), data, size)
    except ZstdError as exc:
        raise about.error(f"{source}: not a zstd frame ({exc})") from None
    if found is None:
        raise about.error(f"{source}: does not unpack to the bytes it claims")
    return found


def _open_earlier(data: bytes, kind: Kind, key: str | None, trusted: minisign.PublicKey | None, source: str) -> Record:
    about, signature = ABOUT[kind], ""
    if kind == "table":
        table = decode(data, _SignedTable, source, about.limit_bytes, about.error)
        data, signature = _utf8(table.table, about, source), table.signature
    elif kind == "head":
        head = decode(data, _SignedHead, source, about.limit_bytes, about.error)
        data, signature = _utf8(head.head, about, source), head.signature
    if kind != "release":
        _verify(data, signature, kind, trusted, source)
    return Record(kind, key or "", 0, data, _digest(data))


def _verify(text: bytes, signature: str, kind: Kind, trusted: minisign.PublicKey | None, source: str) -> str | None:
    """The trusted comment; None if no key is trusted."""
    if trusted is None:
        return None
    if not signature:
        raise SignatureError(f"{source}: the {kind} is not signed, but this device trusts a key")
    return minisign.verify(text, signature, trusted, source)


def _comment(envelope: _Envelope) -> str:
    return f"{envelope.kind}:{envelope.key} number:{envelope.number}"


def _utf8(text: str, about: _About, source: str) -> bytes:
    try:
        return text.encode()
    except UnicodeError:
        raise about.error(f"{source}: not text") from None


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
