"""Merging: each device's corrections weigh as much as its visits, the shipped values as much as twenty."""

from __future__ import annotations

import pytest
from small_tables import make_table

from runtime_edge.errors import TableError, UsageError
from runtime_edge.formats.records.learnt import Cell, Learnt
from streamsplit_compile.splitter.merge import SHIPPED_VISITS, merge

TABLE = make_table(((5.0, 4.0, 0.0, 0.0, 0.0), (1.0, 2.0, 3.0, 4.0, 5.0)))


def learnt(*cells: Cell, table: str = TABLE.digest) -> Learnt:
    return Learnt(device="pi-1", target="rpi4", table=table, cells=list(cells))


def test_values_move_by_the_weighted_mean() -> None:
    merged = merge(TABLE, [learnt((0, 0, -2.0, 60)), learnt((0, 0, -1.0, 20), (1, 4, 0.5, 5))])
    assert SHIPPED_VISITS == 20
    assert merged.q[0] == pytest.approx((5.0 - 140 / 100, 4.0, 0.0, 0.0, 0.0), abs=0.002)
    assert merged.q[1] == pytest.approx((1.0, 2.0, 3.0, 4.0, 5.1), abs=0.002)
    assert (TABLE.policy, merged.policy) == ((0, 4), (1, 4))
    assert merged.created_by == "ssc splitter merge"
    assert merged.costs == TABLE.costs


def test_a_single_visit_hardly_moves_anything() -> None:
    assert merge(TABLE, [learnt((0, 0, -3.0, 1))]).q[0][0] == pytest.approx(5.0 - 3 / 21, abs=0.002)


def test_records_of_another_table_and_none_at_all_are_refused() -> None:
    with pytest.raises(TableError, match="learnt values of pi-1: learnt on another table"):
        merge(TABLE, [learnt(table="sha256:" + "3" * 64)])
    with pytest.raises(UsageError, match="no learnt values"):
        merge(TABLE, [])
