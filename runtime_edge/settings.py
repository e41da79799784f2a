"""A dataclass of settings as the one source of a TOML file, of command-line options and of their documentation.

    @dataclass(frozen=True)
    class Config:
        threads: int = setting(1, "Inference threads.", ge=1, le=64)

    config = load(Config, Path("ssc-edge.toml"), {"threads": None})     # what is not None wins over the file

A field's type is bool, int, float, str, Path, a Literal of strings or a tuple of strings, or one of these or None.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import click
import msgspec

from runtime_edge.base.files import read_text
from runtime_edge.base.text import without_password
from runtime_edge.click_options import RenamedOption
from runtime_edge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

_MAX_BYTES = 1 << 20
_MAX_SHOWN = 100
_UNSET: tuple[object, ...] = (None, (), "")


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_Config = TypeVar("_Config", bound=_Dataclass)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def setting(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    example: Any = None,
    check: Callable[[Any], object] | None = None,
    common: bool = False,
    earlier: tuple[str, ...] = (),
) -> Any:
    """A documented dataclass field.

    Args:
        default: the value if none is given, or a function that makes it.
        doc: one sentence, for `--help`, the file and the documentation.
        ge: smallest number allowed.
        le: largest number allowed.
        example: a value to show if there is no default.
        check: raises UsageError for a value that the type allows but the setting does not.
        common: whether a `--help` that shows only the common options includes it.
        earlier: names it had in earlier versions, which still work everywhere.
    """
    metadata = {
        "doc": doc, "ge": ge, "le": le, "example": example, "check": check, "common": common, "earlier": earlier,
    }  # fmt: skip
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load(config: type[_Config], path: Path | None, given: Mapping[str, Any]) -> _Config:
    """Settings from a TOML file, if given, and from options, which win unless they are None or empty.

    Raises UsageError naming the file and the key.
    """
    values = {} if path is None else read(config, path)
    chosen = {name: value for name, value in given.items() if value not in _UNSET}
    for key in _settings(config):
        if key.check is not None and key.name in chosen:
            key.check(chosen[key.name])
    values.update(chosen)
    return config(**values)


def options(config: type[_Dataclass]) -> Callable[[_Command], _Command]:
    """Decorate a click command with one option for each setting; an option not given is None, or () for a list."""

    def decorate(command: _Command) -> _Command:
        for key in reversed(list(_settings(config))):
            command = _option(key)(command)
        return command

    return decorate


def common_names(config: type[_Dataclass]) -> list[str]:
    """The names of the common settings."""
    return [key.name for key in _settings(config) if key.common]


def as_toml(config: type[_Dataclass], values: Mapping[str, Any] | None = None) -> str:
    """Every setting as TOML, with its documentation; those not in `values` are commented out at their default."""
    values = values or {}
    lines = []
    for key in _settings(config):
        line = f"{key.name} = {_toml_value(values.get(key.name, key.shown))}"
        lines += ["", *key.comment, line if key.name in values else f"# {line}"]
    return "\n".join(lines[1:]) + "\n"


@dataclass(frozen=True)
class _Setting:
    """One field of a settings dataclass."""

    name: str
    type: Any
    """The type without None, and with its bounds for msgspec."""
    base: Any
    default: Any
    """None if there is no fixed default."""
    doc: str
    ge: float | None
    le: float | None
    example: Any
    check: Callable[[Any], object] | None
    common: bool
    earlier: tuple[str, ...]

    @property
    def allowed(self) -> str:
        """The values allowed, in words; empty if the type says it all."""
        if get_origin(self.base) is Literal:
            return "one of " + ", ".join(get_args(self.base))
        bounds = (("at least", self.ge), ("at most", self.le))
        return ", ".join(f"{words} {bound:,}" for words, bound in bounds if bound is not None)

    @property
    def shown(self) -> Any:
        """The default, or the example if there is none."""
        return self.example if self.default in _UNSET else self.default

    @property
    def comment(self) -> list[str]:
        """The setting's comment lines in a TOML file."""
        notes = [self.allowed, "not set by default" * (self.default in _UNSET)]
        words = "; ".join(filter(None, notes))
        return [f"# {self.doc}"] + [f"# ({words})"] * bool(words)


def _settings(config: type[_Dataclass]) -> Iterator[_Setting]:
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        # `X | None` is Union[X, None] in one notation and a type of its own in the other.
        base = next((part for part in get_args(hint) if part is not type(None)), hint) if _optional(hint) else hint
        meta = field.metadata
        bounded = base
        if meta["ge"] is not None or meta["le"] is not None:
            bounded = Annotated[base, msgspec.Meta(ge=meta["ge"], le=meta["le"])]
        default = None if field.default is dataclasses.MISSING else field.default
        yield _Setting(field.name, bounded, base, default, **meta)


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def read(config: type[_Dataclass], path: Path) -> dict[str, Any]:
    """The validated values that a TOML file sets. Raises UsageError or FormatError naming the file and the key."""
    try:
        table = tomllib.loads(read_text(path, _MAX_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise UsageError(f"{path}: not TOML ({exc})") from None
    return validate(config, table, str(path))


def validate(config: type[_Dataclass], table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values of a table, converted to the settings' types. Raises UsageError naming the source and the key."""
    known = {key.name: key for key in _settings(config)}
    renamed = {name: key.name for key in known.values() for name in key.earlier}
    values: dict[str, Any] = {}
    for given, value in table.items():
        name = renamed.get(given, given)
        if name in values:
            earlier = next(other for other in known[name].earlier if other in table)
            raise UsageError(
                f"{source}: {earlier}: an earlier name of {name}, which is given too; keep only one of them"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise UsageError(f"{source}: {name!r:.100}: no such setting{hint}")
        key = known[name]
        try:
            values[name] = msgspec.convert(value, key.type, dec_hook=_path)
            if key.check is not None:
                key.check(values[name])
        except UsageError as exc:
            raise UsageError(f"{source}: {name}: {exc}") from None
        except msgspec.ValidationError as exc:
            allowed = f" ({key.allowed})" if key.allowed else ""
            example = f"{name} = {_toml_value(key.shown)}"
            shown = without_password(repr(value))[:_MAX_SHOWN]
            raise UsageError(f"{source}: {name} is {shown}: {exc}{allowed}; for example {example}") from None
    return values


def from_call(config: type[_Config], given: Mapping[str, Any], source: str) -> _Config:
    """Settings that a program passes by name, paths as Path or text. Raises UsageError naming source and key."""
    texts = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}
    return config(**validate(config, texts, source))


def _path(kind: type, value: object) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `str`, got `{type(value).__name__}`")


def _option(key: _Setting) -> Callable[[_Command], _Command]:
    flags = ["--" + name.replace("_", "-") for name in (key.name, *key.earlier)]
    kind: Any = key.base
    arguments: dict[str, Any] = {"help": key.doc, "default": None}
    if key.earlier:
        arguments |= {"cls": RenamedOption, "earlier": flags[1:]}
    if kind is bool:
        arguments["is_flag"] = True
        flags = [f"{flag}/--no-{flag[2:]}" for flag in flags]
    elif get_origin(kind) is tuple:
        arguments |= {"multiple": True, "default": ()}
    elif get_origin(kind) is Literal:
        arguments["type"] = click.Choice(get_args(kind))
    elif kind is Path:
        arguments["type"] = click.Path(path_type=Path)
    elif kind in (int, float):
        ranged: Any = click.IntRange if kind is int else click.FloatRange
        arguments["type"] = ranged(key.ge, key.le)
    if key.default not in _UNSET and key.default is not False:
        arguments["help"] += f"  [default: {'on' if key.default is True else key.default}]"
    return click.option(*flags, key.name, **arguments)


def _toml_value(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | Path):
        return str(value)
    # A JSON string is also valid TOML, except for one character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
