"""Reading what others have written: JSON, MessagePack or TOML of one type and bounded size, with one error for all.

head = decode(data, Head, "head.json", MAX_HEAD_BYTES, HeadError)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from runtime_edge.base.files import read_bounded
from runtime_edge.errors import FormatError, SscError

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for bytes from outside."""

_Kind = TypeVar("_Kind")
_DECODERS: dict[str, Callable[..., Any]] = {
    "JSON": msgspec.json.decode,
    "MessagePack": msgspec.msgpack.decode,
    "TOML": msgspec.toml.decode,
}


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record without fields that this version does not know."""


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

    Raises `error`, one line that names `source` and the field and ends with `fix`; `kind` may raise it, too, without
    the source.
    """
    if len(data) > limit_bytes:
        raise error(f"{source}: {len(data)} bytes, more than {limit_bytes}")
    try:
        value: _Kind = _DECODERS[form](data, type=kind)
        return value
    except (msgspec.ValidationError, error) as exc:
        problem = str(exc)
    except UNREADABLE as exc:
        problem = f"not {form} ({exc})"
    raise error(f"{source}: {' '.join(problem.split())}{fix}")


def read(
    path: Path, kind: type[_Kind], limit_bytes: int, error: type[FormatError] = FormatError, fix: str = ""
) -> _Kind:
    """A JSON file of at most `limit_bytes` as a value of type `kind`. Raises `error` naming the file and the field."""
    return decode(read_bounded(path, limit_bytes, error), kind, str(path), limit_bytes, error, fix=fix)
