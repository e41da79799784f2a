"""What one device has learnt on top of its table: the record that a server reads and merges."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from runtime_edge.errors import TableError
from runtime_edge.formats.records.table import Digest, SplitterTable
from runtime_edge.formats.strict import Strict, decode

BOUND = 3.0
"""Largest size of a correction, in reward: 120 ms of latency at the default weights."""
MAX_LEARNT_BYTES = 512 << 10
Cell = tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)], float, Annotated[int, Meta(ge=1, le=1 << 53)]]
"""Row, action, correction, visits."""


class Learnt(Strict, frozen=True, kw_only=True):
    """The corrections of one device to one table."""

    format: Literal["streamsplit.learnt/1"] = "streamsplit.learnt/1"
    device: Annotated[str, Meta(max_length=63)]
    target: Annotated[str, Meta(max_length=200)]
    table: Digest
    """Digest of the table they correct."""
    cells: Annotated[list[Cell], Meta(max_length=65536)]

    def to_json(self) -> bytes:
        """JSON bytes."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes, source: str) -> Learnt:
        """Read and check a record. Raises TableError naming `source` and the field."""
        record = decode(data, cls, source, MAX_LEARNT_BYTES, TableError)
        for row, action, correction, _ in record.cells:
            if not abs(correction) <= BOUND:
                raise TableError(f"{source}: cells: {correction} at row {row}, action {action} is beyond {BOUND}")
        return record

    def corrects(self, table: SplitterTable) -> bool:
        """Whether the corrections are for this very table, as it is or as it was before it was upgraded."""
        return self.table in (table.digest, table.upgraded_from)

    def check(self, table: SplitterTable, source: str) -> None:
        """Raise TableError unless the corrections are for this very table."""
        if not self.corrects(table):
            raise TableError(f"{source}: learnt on another table ({self.table[:19]}...), not on {table.digest[:19]}...")
        if any(row >= len(table.q) or action >= len(table.costs) for row, action, _, _ in self.cells):
            raise TableError(f"{source}: cells: a row or action that the table does not have")
