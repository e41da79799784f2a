"""What the code says of a format's fields, in the words of the tables of docs/formats.md."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

ROOT = Path(__file__).parents[2]
WORDS = {
    inspect.AnyType: "any",
    inspect.BoolType: "boolean",
    inspect.BytesType: "bytes",
    inspect.DateTimeType: "time",
    inspect.FloatType: "number",
    inspect.IntType: "integer",
    inspect.NoneType: "null",
    inspect.RawType: "JSON",
}
PATTERNS = {r"^sha256:[0-9a-f]{64}/": "asset", r"^sha256:[0-9a-f]{64}": "digest", r"^[^\x00": "name"}
"""Of texts, by how the pattern begins that they match."""


def rows(path: str, name: str) -> list[tuple[str, str, str, str]]:
    """Name, type, bounds and default of each field of a class, in order."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    info: Any = inspect.type_info(vars(module)[name])
    return [(field.encode_name, *_told(field.type), _default(field)) for field in info.fields]


def _told(kind: Any) -> tuple[str, str]:
    """Type and bounds."""
    if isinstance(kind, inspect.StrType):
        begin = next((begin for begin in PATTERNS if (kind.pattern or "").startswith(begin)), None)
        return ("text", _length(kind)) if begin is None else (PATTERNS[begin], "")
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values), ""
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        word, bounds = _told(kind.item_type)
        return f"list of {word}", _joined(_length(kind), bounds)
    if isinstance(kind, inspect.TupleType):
        words, bounds = zip(*map(_told, kind.item_types), strict=True)
        return f"list: {', '.join(words)}", ", ".join(text or "any" for text in bounds)
    if isinstance(kind, inspect.DictType):
        word, bounds = _told(kind.value_type)
        return f"object of {word}", _joined(_length(kind), bounds)
    if isinstance(kind, inspect.UnionType):
        words, bounds = zip(*map(_told, kind.types), strict=True)
        return " or ".join(words), _joined(*bounds)
    if isinstance(kind, inspect.StructType | inspect.DataclassType | inspect.NamedTupleType):
        return f"`{kind.cls.__name__}`", ""
    return WORDS[type(kind)], _range(kind) if isinstance(kind, inspect.IntType | inspect.FloatType) else _length(kind)


def _joined(*bounds: str) -> str:
    return "; ".join(filter(None, bounds))


def _length(kind: Any) -> str:
    least, most = getattr(kind, "min_length", None), getattr(kind, "max_length", None)
    if most is None:
        return ""
    return f"length {least} to {_number(most)}" if least else f"length to {_number(most)}"


def _range(kind: Any) -> str:
    low = f"above {_number(kind.gt)}" if kind.gt is not None else "" if kind.ge is None else _number(kind.ge)
    high = f"below {_number(kind.lt)}" if kind.lt is not None else "" if kind.le is None else _number(kind.le)
    if not high:
        return f"at least {low}" if low else ""
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    if isinstance(value, int) and power > 20 and value == 1 << power:
        return f"2^{power}"
    if isinstance(value, int) and power > 20 and value + 1 == 1 << power + 1:
        return f"2^{power + 1} - 1"
    return f"{value:.15g}"


def _default(field: Any) -> str:
    if field.required:
        return ""
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "left out"  # msgspec.UNSET
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return f"`{msgspec.json.encode(value).decode()}`"
