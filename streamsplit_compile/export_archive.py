"""Reading torch.export archives from elsewhere without running anything in them.

`torch.export.load` falls back to unpickling for some entries and evaluates symbolic expressions as Python, so an
archive is inspected first and refused when it holds anything but tensors and plain expressions.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runtime_edge.errors import FormatError

_MAX_JSON_BYTES = 256 << 20
_EXPRESSION = re.compile(r"[\w\s+\-*/(),.<>=~&|]*")
_NAMES = re.compile(
    r"[su]\d+|Symbol|Integer|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|IntTrueDiv|TrueDiv"
    r"|Eq|Ne|Ge|Gt|Le|Lt|oo|int_oo|True|False|And|Or|Not"
)


def is_archive(path: Path) -> bool:
    """Whether a zip file looks like a torch.export archive (and not like a checkpoint)."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("archive_format") for name in names) or any("/models/" in f"/{n}" for n in names)


def load(path: Path) -> torch.export.ExportedProgram:
    """Inspect and read an archive. Raises FormatError naming the entry that is not admitted."""
    _inspect(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(str(path))
    except Exception as exc:
        reason = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise FormatError(f"{path}: torch.export.load cannot read it ({reason})") from None


def _inspect(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _inspect_entry(archive, entry, path)
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError) as exc:
        raise FormatError(f"{path}: damaged archive ({exc})") from None


def _inspect_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    where = f"{path}: entry {entry.filename}"
    name = entry.filename.rsplit("/", 1)[-1]
    if name.startswith(("custom_obj", "opaque_obj")):
        raise FormatError(f"{where}: a pickled object; only tensors are admitted")
    if name.endswith(".json"):
        if entry.file_size > _MAX_JSON_BYTES:
            raise FormatError(f"{where}: {entry.file_size} bytes, more than {_MAX_JSON_BYTES}")
        for key, value in _walk(json.loads(archive.read(entry))):
            if key == "use_pickle" and value:
                raise FormatError(f"{where}: a pickled tensor; only plain tensors are admitted")
            if key == "expr_str":
                _check_expression(str(value), where)
    elif name.endswith(".pt"):
        try:
            torch.load(io.BytesIO(archive.read(entry)), weights_only=True)
        except Exception:
            raise FormatError(f"{where}: a pickle with more than tensors in it; not admitted") from None


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            for key, inner in item.items():
                yield key, inner
                pending.append(inner)
        elif isinstance(item, list):
            pending.extend(item)


def _check_expression(expression: str, where: str) -> None:
    names = re.findall(r"[A-Za-z_]\w*", expression)
    if not _EXPRESSION.fullmatch(expression) or not all(_NAMES.fullmatch(name) for name in names):
        raise FormatError(f"{where}: expression {expression[:60]!r} is not a plain size expression")
