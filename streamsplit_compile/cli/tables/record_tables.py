"""Summaries of table, head, adaptation and sub-model files, for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from runtime_edge.base.files import read_bounded
from runtime_edge.base.text import size
from runtime_edge.errors import FormatError
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.records.submodel import MAX_SUBMODEL_BYTES, SubModel
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.formats.strict import decode
from streamsplit_compile.cli.printing import print_table


class _AnyFormat(msgspec.Struct):
    format: str


def record_summary(path: Path) -> dict[str, Any]:
    """Summarise a file. Raises FormatError if it is none of these kinds."""
    data = read_bounded(path, MAX_SUBMODEL_BYTES, FormatError)
    name = decode(data, _AnyFormat, str(path), MAX_SUBMODEL_BYTES).format
    kind = name.removeprefix("streamsplit.").split("/")[0]
    if kind not in _SUMMARIES:
        raise FormatError(f"{path}: format: {name[:60]!r}; expected that of a {', '.join(_SUMMARIES)}")
    return {"kind": kind, "bytes": len(data), **_SUMMARIES[kind](data, str(path))}


def print_record(path: Path, summary: dict[str, Any]) -> None:
    """Print the table that `ssc inspect` shows for a file."""
    title = f"{path}: {summary['kind']}, {size(summary['bytes'])}"
    rows = [[name, _shown(value)] for name, value in summary.items() if name not in ("kind", "bytes")]
    print_table(title, ["field", "value"], rows)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_shown(inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(data: bytes, source: str) -> dict[str, Any]:
    table = SplitterTable.from_json(data, source)
    return {
        "target": table.target,
        "encoder": table.encoder,
        "created_by": table.created_by,
        "actions": table.actions,
        "states": len(table.q),
        "digest": table.digest,
        "upgraded_from": table.upgraded_from,
    }


def _head(data: bytes, source: str) -> dict[str, Any]:
    head = Head.from_json(data, source)
    fields: dict[str, Any] = msgspec.to_builtins(head)
    return {name: value for name, value in fields.items() if name not in ("format", "bias", "weights")}


def _adaptation(data: bytes, source: str) -> dict[str, Any]:
    adaptation = Adaptation.from_json(data, source)
    return {
        "encoder": adaptation.encoder,
        "generation": adaptation.generation,
        "model": adaptation.model,
        "created_by": adaptation.created_by,
        "variants": list(adaptation.self_tests),
        "channels": {layer.name: len(layer.arrays()[0]) for layer in adaptation.layers},
        "digest": adaptation.digest,
    }


def _submodel(data: bytes, source: str) -> dict[str, Any]:
    model = SubModel.from_json(data, source)
    info = model.manifest.info
    return {
        "name": model.name,
        "encoder": info.encoder.id,
        "generation": info.generation,
        "modules": {modules.layer: f"{len(modules.kept)} of {modules.groups}" for modules in model.modules},
        "cuts": [cut.name for cut in info.cuts],
        "cut_assets": [f"{asset.kind} at {asset.cut}" for asset in model.cut_assets],
        "targets": list(info.targets),
        "asset_bytes": sum(model.assets().values()),
        "embeds_like": model.embeds_like,
        "head": model.head,
        "digest": model.digest,
    }


_SUMMARIES: dict[str, Callable[[bytes, str], dict[str, Any]]] = {
    "table": _table,
    "head": _head,
    "adaptation": _adaptation,
    "submodel": _submodel,
}
