"""Writes the formats of version 0.1.0, for comparisons and for tests that they can still be read."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import msgspec

from runtime_edge.formats.records.actions import Costs, canonical_json
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.formats.wire import WIRE_ENCODINGS


def frame_v1(
    window: int, capture_ns: int, generation: int, cut: int, encoding: str, compressed: bool, uncertainty: float,
    payload: bytes,
) -> bytes:  # fmt: skip
    """A frame as its devices sent it (docs/formats.md)."""
    fields = (1, window, capture_ns, generation, cut, WIRE_ENCODINGS.index(encoding), compressed, uncertainty)
    header = msgspec.msgpack.encode([*fields, zlib.crc32(payload)])
    return bytes((len(header),)) + header + payload


def table_v1(table: SplitterTable, **changes: Any) -> bytes:
    """A table's file, with some fields changed."""
    fields = json.loads(table.to_json())
    fields["uplink"].pop("radio", None)
    costs = [{name: action[name] for name in Costs.__struct_fields__} for action in fields["costs"]]
    digest = "sha256:" + hashlib.sha256(canonical_json([costs, fields["uplink"]]).encode()).hexdigest()
    del fields["ship"], fields["upgraded_from"], fields["values"]
    fields |= {"format": "streamsplit.table/1", "costs": costs, "costs_digest": digest}
    fields |= {"policy": list(table.policy), "q": [list(row) for row in table.q]}
    return (json.dumps(fields | changes) + "\n").encode()


def head_v1(head: Head, **changes: Any) -> bytes:
    """A head's file, with some fields changed."""
    fields = json.loads(head.to_json())
    for name in ("model", "temperature", "exit_temperatures", "background", "min_energy"):
        del fields[name]
    return (json.dumps(fields | {"format": "streamsplit.head/1"} | changes) + "\n").encode()
