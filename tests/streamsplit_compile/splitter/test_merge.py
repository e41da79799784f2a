"""Merging: a device weighs as much as its visits, up to the median of all; the shipped values as much as twenty."""

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
    merged = merge(TABLE, [learnt((0, 0, -2.0, 60)), learnt((0, 0, -1.0, 60), (1, 4, 0.5, 5))])
    assert SHIPPED_VISITS == 20
    assert merged.q[0] == pytest.approx((5.0 - 180 / 140, 4.0, 0.0, 0.0, 0.0), abs=1e-3)
    assert merged.q[1] == pytest.approx((1.0, 2.0, 3.0, 4.0, 5.1), abs=2e-3)
    assert (TABLE.policy, merged.policy) == ((0, 4), (1, 4))
    assert merged.created_by == "ssc splitter merge"
    assert merged.costs == TABLE.costs


def test_a_single_visit_hardly_moves_anything() -> None:
    assert merge(TABLE, [learnt((0, 0, -3.0, 1))]).q[0][0] == pytest.approx(5.0 - 3 / 21, abs=0.002)


@pytest.mark.parametrize("claimed", [100, 10_000, 1 << 53])
def test_a_device_weighs_no_more_than_the_median_of_all_whatever_visits_it_claims(claimed: int) -> None:
    honest = [learnt((0, 0, -1.0, 100)) for _ in range(9)]
    merged = merge(TABLE, [learnt((0, 0, 3.0, claimed)), *honest])
    assert merged.q[0][0] == pytest.approx(5.0 + (300 - 900) / 1020, abs=1e-3)
    twice = merge(TABLE, [learnt(*[(0, 0, 3.0, claimed)] * 50), *honest])
    assert twice.q == merged.q, "one value named often is no more"


@pytest.mark.parametrize("others", [1, 2, 9])
def test_a_value_that_one_device_alone_has_visited_moves_halfway_at_most(others: int) -> None:
    merged = merge(TABLE, [learnt((0, 0, -3.0, 1 << 53)), *[learnt((1, 1, 0.1, 100)) for _ in range(others)]])
    assert merged.q[0][0] == pytest.approx(5.0 - 1.5, abs=1e-3)


def test_a_device_alone_weighs_as_much_as_its_visits() -> None:
    assert merge(TABLE, [learnt((0, 0, -2.0, 60))]).q[0][0] == pytest.approx(5.0 - 120 / 80, abs=1e-3)


def test_records_of_another_table_and_none_at_all_are_refused() -> None:
    with pytest.raises(TableError, match="learnt values of pi-1: learnt on another table"):
        merge(TABLE, [learnt(table="sha256:" + "3" * 64)])
    with pytest.raises(UsageError, match="no learnt values"):
        merge(TABLE, [])
