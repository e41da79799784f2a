"""Strict decoding of untrusted data: JSON, MessagePack or TOML of one type and bounded size, with one error type for
all faults.

A key that appears twice in a JSON object is refused: parsers differ in which of the two they use, and a signature
covers both.

head = decode(data, Head, "head.json", MAX_HEAD_BYTES, HeadError)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from runtime_edge.base.files import read_bounded
from runtime_edge.errors import FormatError, SscError

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Everything that msgspec raises for malformed input."""

Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]+\Z",
    ),
]
"""Text shown to people. It has no control characters, so that an error that quotes it stays on one line, and no
invisible characters or changes of text direction, so that it reads as it is."""

_Kind = TypeVar("_Kind")
_DECODERS: dict[str, Callable[..., Any]] = {
    "JSON": msgspec.json.decode,
    "MessagePack": msgspec.msgpack.decode,
    "TOML": msgspec.toml.decode,
}


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record that refuses fields unknown to this version."""


def decode(
    data: bytes,
    kind: type[_Kind],
    source: str,
    limit_bytes: int,
    error: type[SscError] = FormatError,
    form: Literal["JSON", "MessagePack", "TOML"] = "JSON",
    fix: str = "",
) -> _Kind:
    """A value of type `kind` from at most `limit_bytes` of data.

    Raises `error`, one line that names `source` and the field and ends with `fix`; `kind` may raise it as well, without
    the source.
    """
    if len(data) > limit_bytes:
        raise error(f"{source}: {len(data)} bytes, more than {limit_bytes}")
    try:
        value: _Kind = _DECODERS[form](data, type=kind)
        if form == "JSON":
            _check_keys(data)
        return value
    except _TwiceError as exc:
        problem = str(exc)
    except (msgspec.ValidationError, error) as exc:
        problem = str(exc)
    except UNREADABLE as exc:
        problem = f"not {form} ({exc})"
    raise error(f"{source}: {' '.join(problem.split())}{fix}")


class _TwiceError(Exception):
    """A key appears twice."""


def _check_keys(data: bytes) -> None:
    """Raise _TwiceError unless the keys of each object are all different."""
    json.loads(str(data, "utf-8"), object_pairs_hook=_unique, parse_int=len, parse_float=len)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise _TwiceError(f"key {key[:60]!r} appears twice in one object")
        seen.add(key)


def read(
    path: Path, kind: type[_Kind], limit_bytes: int, error: type[FormatError] = FormatError, fix: str = ""
) -> _Kind:
    """Read a JSON file of at most `limit_bytes` as a value of type `kind`. Raises `error` naming file and field."""
    return decode(read_bounded(path, limit_bytes, error), kind, str(path), limit_bytes, error, fix=fix)
