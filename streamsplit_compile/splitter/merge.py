"""Folding what devices have learnt into a table (`runtime_edge.policy.online_learner`)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.learnt import Learnt
from runtime_edge.formats.records.table import SplitterTable, as_stored, q_rows

SHIPPED_VISITS = 20.0
"""What a shipped value weighs against the devices' visits."""


def merge(table: SplitterTable, records: Sequence[Learnt], created_by: str = "ssc splitter merge") -> SplitterTable:
    """The table with each value moved by its devices' corrections, each weighing as much as its visits.

    Raises TableError for records of another table, UsageError when there are none.
    """
    if not records:
        raise UsageError("no learnt values to merge: run devices with --learn, or name a file with --learnt")
    moved, weight = (
        np.zeros((len(table.q), len(table.costs))),
        np.full((len(table.q), len(table.costs)), SHIPPED_VISITS),
    )
    for record in records:
        record.check(table, f"learnt values of {record.device}")
        for row, action, correction, visits in record.cells:
            moved[row, action] += visits * correction
            weight[row, action] += visits
    q = as_stored(np.asarray(table.q) + moved / weight)
    return msgspec.structs.replace(
        table,
        created_by=created_by,
        upgraded_from=None,
        q=q_rows(q),
    )
