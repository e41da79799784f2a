"""Corrections on the device: towards what is measured, bounded, apart from the table, and back from disk."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from small_tables import CUTS, UPLINK, make_table

from runtime_edge.errors import TableError
from runtime_edge.formats.records.actions import costs_digest
from runtime_edge.formats.records.learnt import BOUND, Learnt
from runtime_edge.formats.records.table import Limits, Reward
from runtime_edge.policy.online_learner import OnlineLearner
from runtime_edge.policy.reward import Conditions, terms, whole
from runtime_edge.policy.splitter import Splitter

AT = Conditions(uncertainty=0.5, cpu=0.0, bandwidth_mbps=8.0, rtt_ms=50.0)


def expected_reward(table, action: int, uncertainty: float = 0.5) -> float:
    at = AT._replace(uncertainty=uncertainty)
    return float(terms(table.costs[action], whole(table.costs), UPLINK, Reward(), Limits(), at).total)


def true_table(**changes):
    """A table whose Q is the reward of these very conditions."""
    rewards = tuple(expected_reward(make_table(((0.0,) * 5,) * 2), action) for action in range(5))
    return make_table((rewards, rewards), **changes)


def live(learner: OnlineLearner, windows: int, action: int, device_ms: float, answer_ms: float | None, row: int = 0):
    for window in range(windows):
        learner.decided(window, row, action, AT)
        learner.finished(window, 0.5, device_ms, answer_ms)


def test_what_is_as_the_table_says_corrects_nothing() -> None:
    table = true_table()
    learner = OnlineLearner(table, "pi-1")
    action = table.costs[1]
    live(learner, 50, 1, action.device_ms, 16_000 / 1000 + 50 + 3)
    assert learner.q(0) == pytest.approx(table.q[0])
    live(learner, 50, 3, table.costs[3].device_ms, None)  # finished here: nothing is known of the network
    assert learner.q(0) == pytest.approx(table.q[0])


def test_an_exits_answer_and_the_servers_after_it_count_as_the_table_says() -> None:
    plain = make_table(((0.0,) * 5,) * 2)
    early = replace(plain.costs[1], answer="exit", exit_quality=(0.9,))
    costs = (plain.costs[0], early, *plain.costs[2:])
    rewards = tuple(float(terms(one, whole(costs), UPLINK, Reward(), Limits(), AT).total) for one in costs)
    table = make_table((rewards, rewards), costs=costs, costs_digest=costs_digest(costs, UPLINK))
    learner = OnlineLearner(table, "pi-1")
    live(learner, 50, 1, early.device_ms, 16_000 / 1000 + 50 + 3)
    assert learner.q(0) == pytest.approx(table.q[0])
    live(learner, 400, 1, early.device_ms, 16_000 / 1000 + 50 + 3 + 40.0)
    assert learner.q(0)[1] - table.q[0][1] == pytest.approx(-5 * 40 / 2 / 200, abs=0.02)


def test_a_slower_device_lowers_what_it_measured_and_nothing_else() -> None:
    table = true_table()
    learner = OnlineLearner(table, "pi-1")
    live(learner, 400, 1, table.costs[1].device_ms + 40.0, 16_000 / 1000 + 50 + 3)
    change = np.array(learner.q(0)) - np.array(table.q[0])
    assert change[1] == pytest.approx(-5 * 40 / 200, abs=0.02)
    assert change[[0, 2, 3, 4]].tolist() == [0, 0, 0, 0]
    assert learner.q(1) is table.q[1]
    assert learner.updates == 399  # the last window's successor is not known yet


def test_the_next_state_counts_as_the_discount_says() -> None:
    table = true_table(discount=0.5)
    learner = OnlineLearner(table, "pi-1")
    live(learner, 600, 1, table.costs[1].device_ms, 16_000 / 1000 + 50 + 3, row=1)
    target = expected_reward(table, 1) + 0.5 * max(table.q[1])
    assert learner.q(1)[1] == pytest.approx(min(max(target, table.q[1][1] - BOUND), table.q[1][1] + BOUND), abs=0.05)


def test_corrections_are_bounded_and_the_table_stays_as_it_was() -> None:
    table = true_table()
    before = table.to_json()
    learner = OnlineLearner(table, "pi-1")
    live(learner, 500, 1, 60_000.0, 900.0)
    assert learner.q(0)[1] == pytest.approx(table.q[0][1] - BOUND)
    assert table.to_json() == before


def test_a_device_that_learns_takes_another_cut_where_the_table_is_wrong() -> None:
    table = make_table(((0.0, 5.0, 4.0, 0.0, 0.0),) * 2, hysteresis=0.1)
    learner = OnlineLearner(table, "pi-1")
    splitter = Splitter(table, CUTS)
    splitter.learn(learner)
    assert splitter.choose(0.5, 0.0, 8.0, 50.0).cut == "layer1"
    live(learner, 300, 1, 500.0, 500.0, row=1)
    assert splitter.choose(0.5, 0.0, 8.0, 50.0).cut == "layer2"
    assert Splitter(table, CUTS).choose(0.5, 0.0, 8.0, 50.0).cut == "layer1"


def test_windows_that_are_never_finished_are_forgotten() -> None:
    learner = OnlineLearner(true_table(), "pi-1")
    for window in range(5000):
        learner.decided(window, 0, 1, AT)
    learner.finished(0, 0.5, 1.0, 1.0)
    learner.finished(5000 - 257, 0.5, 1.0, 1.0)
    assert learner.updates == 0
    learner.finished(5000 - 256, 0.5, 1.0, 1.0)
    assert learner.updates == 1


def test_what_was_learnt_survives_a_restart_and_only_with_its_table() -> None:
    table = true_table()
    learner = OnlineLearner(table, "pi-1")
    live(learner, 40, 1, 70.0, 70.0)
    record = Learnt.from_json(learner.record().to_json(), "learnt.json")
    assert (record.device, record.table) == ("pi-1", table.digest)
    assert [cell[:2] for cell in record.cells] == [(0, 1)]
    assert record.cells[0][3] == 39
    again = OnlineLearner(table, "pi-1", record)
    assert again.q(0) == pytest.approx(learner.q(0), abs=1e-4)
    assert again.record() == record
    with pytest.raises(TableError, match="learnt on another table"):
        OnlineLearner(true_table(hysteresis=0.7), "pi-1", record)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[0, 1, 3.5, 2]], r"cells: 3.5 at row 0, action 1 is beyond"),
        ([[0, 1, None, 2]], "cells"),
        ([[0, 1, 0.5, 0]], "cells"),
        ([[-1, 1, 0.5, 1]], "cells"),
    ],
)
def test_wrong_cells_are_refused(cells: list, message: str) -> None:
    record = (
        OnlineLearner(true_table(), "pi-1")
        .record()
        .to_json()
        .replace(b'"cells":[]', b'"cells":' + repr(cells).replace("None", "null").encode())
    )
    with pytest.raises(TableError, match=message):
        Learnt.from_json(record, "learnt.json")


def test_cells_outside_the_table_are_refused() -> None:
    table = true_table()
    record = Learnt(device="pi-1", target="rpi4", table=table.digest, cells=[(2, 0, 0.1, 1)])
    with pytest.raises(TableError, match="a row or action that the table does not have"):
        OnlineLearner(table, "pi-1", record)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(TableError):
        assert isinstance(Learnt.from_json(data, "learnt.json"), Learnt)
