"""Merges values that devices have learnt into a table (`runtime_edge.policy.online_learner`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec
import numpy as np

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.learnt import Learnt
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.formats.records.table_values import as_stored, q_rows

SHIPPED_VISITS = 20.0
"""The weight of the table's own value, in visits of devices."""

_Place = tuple[int, int]
"""Row and action."""
_Told = tuple[int, float]
"""A device's visits to a value, and its correction."""


def merge(table: SplitterTable, records: Sequence[Learnt], created_by: str = "ssc splitter merge") -> SplitterTable:
    """The table with each value moved by the devices' corrections, weighted by their visits.

    A device's visits cannot be verified, so they count at most as much as the median of all devices' visits to the same
    value, or as `SHIPPED_VISITS` if that is more. Raises TableError for records of another table, UsageError when there
    are no records.
    """
    if not records:
        raise UsageError("no learnt values to merge: run devices with --learn, or name a file with --learnt")
    cells: dict[_Place, list[_Told]] = {}
    for record in records:
        record.check(table, f"learnt values of {record.device}")
        for place, told in _by_place(record).items():
            cells.setdefault(place, []).append(told)
    q = np.array(table.q)
    for place, found in cells.items():
        nothing = [0] * (len(records) - len(found))
        most = max(SHIPPED_VISITS, statistics.median_low([*(visits for visits, _ in found), *nothing]))
        weights = [min(visits, most) for visits, _ in found]
        moved = sum(weight * correction for weight, (_, correction) in zip(weights, found, strict=True))
        q[place] += moved / (SHIPPED_VISITS + sum(weights))
    return msgspec.structs.replace(
        table,
        created_by=created_by,
        upgraded_from=None,
        q=q_rows(as_stored(q)),
    )


def _by_place(record: Learnt) -> dict[_Place, _Told]:
    """Visits and mean correction by row and action; a record may name the same pair several times."""
    found: dict[_Place, _Told] = {}
    for row, action, correction, visits in record.cells:
        before, mean = found.get((row, action), (0, 0.0))
        total = before + visits
        found[row, action] = total, mean + (correction - mean) * visits / total
    return found
