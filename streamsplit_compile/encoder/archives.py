"""Reads foreign torch.export archives without running anything in them.

`torch.export.load` unpickles some entries, loads others as shared libraries, evaluates symbolic expressions as
Python and resolves any attribute of `torch` as an operator. So an archive is first read here, entry by entry;
everything that is not on the lists below is refused, and torch gets a new archive of the admitted entries, never the
file itself.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runtime_edge.errors import FormatError
from streamsplit_compile.encoder.quiet import quiet
from streamsplit_compile.encoder.weights import entry_names

_MAX_JSON_BYTES = 256 << 20
_ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
    r"|models/model\.json|data/sample_inputs/model\.pt|data/(weights|constants)/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|torch\.sym_\w+|math\.(trunc|ceil|floor)"
    r"|_operator\.(getitem|eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift)"
)
_SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
_EXPRESSION = re.compile(r"[\w\s+\-*/(),.<>=~&|]*")
_NAMES = re.compile(
    r"[su]\d+|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|TrueDiv"
    r"|Eq|Ne|Ge|Gt|Le|Lt|Equality|Unequality|(Strict)?(Greater|Less)Than|oo|int_oo|[Tt]rue|[Ff]alse|And|Or|Not"
)
_MAX_EXPRESSIONS = 10_000
_MAX_EXPRESSION = 1000
"""The most characters of a size expression."""
_MAX_BITS = 4096
"""The most bits of a size, because torch evaluates it to the last digit."""
_SYMBOL_BITS = 64
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_METADATA = ("nn_module_stack",)


def is_archive(path: Path) -> bool:
    """Whether a zip file looks like a torch.export archive, not a checkpoint. Raises FormatError."""
    try:
        names = entry_names(path)
    except ValueError as exc:
        raise FormatError(f"{path}: damaged file ({exc})") from None
    return any(name.endswith("archive_format") for name in names) or any("/models/" in f"/{n}" for n in names)


def load(path: Path) -> torch.export.ExportedProgram:
    """Inspect and read an archive. Raises FormatError naming an entry that is not admitted."""
    admitted = _admit(path)
    try:
        with quiet():
            return torch.export.load(admitted)
    except Exception as exc:
        reason = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise FormatError(f"{path}: torch.export.load cannot read it ({reason})") from None


def _admit(path: Path) -> io.BytesIO:
    """A new archive of the admitted entries."""
    result = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(result, "w") as copy:
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2]
                if not name.startswith("extra/"):  # the user's notes, not part of the program
                    copy.writestr(f"archive/{name}", _admit_entry(archive, entry, name, f"{path}: entry {name}"))
    except FormatError:
        raise
    except Exception as exc:  # a damaged file fails in as many ways as there are fields in it
        raise FormatError(f"{path}: damaged archive ({' '.join(str(exc).split())[:200]})") from None
    result.seek(0)
    return result


def _admit_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, where: str) -> bytes:
    if not _ENTRIES.fullmatch(name):
        raise FormatError(f"{where}: not admitted; an archive may hold tensors and one graph, no objects or libraries")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise FormatError(f"{where}: compressed; torch.export.save does not compress")
    if name.endswith(".json") and entry.file_size > _MAX_JSON_BYTES:
        raise FormatError(f"{where}: {entry.file_size} bytes, more than {_MAX_JSON_BYTES}")
    data = archive.read(entry)
    if name.endswith(".json"):
        return _admit_json(data, where)
    if name.endswith(".pt"):
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except Exception:
            raise FormatError(f"{where}: a pickle with more than tensors in it; not admitted") from None
    return data


def _admit_json(data: bytes, where: str) -> bytes:
    document = json.loads(data)
    expressions = 0
    for item in _objects(document):
        if item.get("use_pickle"):
            raise FormatError(f"{where}: a pickled tensor; only plain tensors are admitted")
        if "expr_str" in item:
            expressions += 1
            if expressions > _MAX_EXPRESSIONS:
                raise FormatError(f"{where}: more than {_MAX_EXPRESSIONS} size expressions")
            check_expression(str(item["expr_str"]), where)
        if "target" in item and not _OPERATORS.fullmatch(str(item["target"])):
            raise FormatError(f"{where}: operator {str(item['target'])[:60]!r} is not one of torch.ops.aten")
        for field in ("in_spec", "out_spec"):
            if field in item:
                _check_containers(item[field], where)
        if isinstance(item.get("metadata"), dict):
            item["metadata"] = {key: value for key, value in item["metadata"].items() if key in _METADATA}
        if "guards_code" in item:
            item["guards_code"] = []
    return json.dumps(document).encode()


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in a document."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def check_expression(expression: str, where: str) -> None:
    """Raise FormatError for anything but a size as torch writes it: `2*s0`, `Mod(u0, 2)`."""
    plain = _SYMBOL.sub("s0", expression)
    names = re.findall(r"[A-Za-z_]\w*", plain)
    if not _EXPRESSION.fullmatch(plain) or not all(_NAMES.fullmatch(name) for name in names):
        raise FormatError(f"{where}: expression {expression[:60]!r} is not a plain size expression")
    try:
        if len(plain) > _MAX_EXPRESSION or _bits(ast.parse(plain.strip(), mode="eval").body) > _MAX_BITS:
            raise FormatError(f"{where}: expression {expression[:60]!r} is too large a size")
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise FormatError(f"{where}: expression {expression[:60]!r} is not a plain size expression") from None


def _bits(node: ast.expr) -> int:
    """The most bits a size expression can need. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return int(node.value).bit_length()
    if isinstance(node, ast.Name):
        return _SYMBOL_BITS
    if isinstance(node, ast.UnaryOp):
        return _bits(node.operand)
    if isinstance(node, ast.Compare):
        return max(map(_bits, (node.left, *node.comparators)))
    if isinstance(node, ast.BinOp):
        return _together(type(node.op).__name__, [node.left, node.right])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _together(node.func.id, node.args)
    raise ValueError(ast.dump(node))


def _together(operation: str, parts: list[ast.expr]) -> int:
    if operation == "Pow":
        base, exponent = parts
        if isinstance(exponent, ast.Call) and len(exponent.args) == 1:  # Integer(2)
            exponent = exponent.args[0]
        if isinstance(exponent, ast.UnaryOp):
            exponent = exponent.operand
        if not isinstance(exponent, ast.Constant) or not isinstance(exponent.value, int | float):
            raise ValueError("an exponent that is not a number")
        # Exponents beyond the bound already give too many bits, so they can be cut off there.
        return _bits(base) * int(min(exponent.value, _MAX_BITS + 1)) + 1
    if operation in ("LShift", "RShift", "Invert"):
        raise ValueError("a shift")
    bits = [_bits(part) for part in parts]
    return max(bits, default=0) + len(bits) if operation in ("Add", "Sub") else sum(bits) + 1


def _check_containers(text: str, where: str) -> None:
    """Check how inputs and outputs nest: torch imports the modules that other kinds of containers name."""
    _, spec = json.loads(text)
    pending = [spec]
    while pending:
        node = pending.pop()
        keys = json.loads(node["context"] or "null") or []
        if node["type"] not in _CONTAINERS or not all(isinstance(key, (str, int)) for key in keys):
            raise FormatError(f"{where}: a container that is not a tuple, list or dictionary; not admitted")
        pending.extend(node["children_spec"])
