"""What a device may send and fetch, over restarts and whatever its clock does."""

import json
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.base.traffic.budget import DAYS, on_the_way
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import WaitsForBudget
from runtime_edge.transport.budgets import Budgets
from runtime_edge.transport.in_memory import InMemoryTransport

DAY_S = 86_400.0
START = 1_800_000_000.0


class Clock:
    """Two clocks that go together until one of them is set."""

    def __init__(self):
        self.wall, self.steady = START, 0.0

    def pass_s(self, seconds):
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def transport():
    return InMemoryTransport()


def begin(state, transport, clock, **settings):
    config = DeviceConfig(device="pi-1", state=state, **settings)
    return Budgets(config, transport, lambda: clock.wall, lambda: clock.steady)


def test_used_up_the_link_is_held_and_goes_on_by_itself(tmp_path, transport, clock, caplog):
    caplog.set_level(logging.WARNING)
    budgets = begin(tmp_path, transport, clock, mb_per_day=10.0)
    transport.up, transport.down = 6_000_000, 3_900_000
    budgets.charge()
    assert transport.connected
    transport.up += 200_000
    budgets.charge()
    assert not transport.connected
    status = budgets.status()
    assert status.budget.left_bytes == -100_000
    # what is owed, and a little more
    assert status.held_until == pytest.approx(clock.wall + 100_000 / 10e6 * DAY_S + 10, abs=1)
    assert time.strftime("%Y-%m-%d %H:", time.localtime(status.held_until)) in transport.held
    clock.pass_s(status.held_until - clock.wall - 1)
    budgets.charge()
    assert not transport.connected
    clock.pass_s(1.1)
    budgets.charge()
    assert transport.connected
    assert budgets.status().held_until is None
    for _ in range(5):  # it is said once
        transport.up += 1_000_000
        budgets.charge()
        clock.pass_s(3 * 3600)
        budgets.charge()
    assert caplog.text.count("is used up until") == 1


def test_without_budgets_everything_is_counted_and_nothing_held(tmp_path, transport, clock):
    budgets = begin(tmp_path, transport, clock)
    transport.up, transport.down, transport.updates = 10**9, 2 * 10**9, 10**8
    clock.pass_s(600)
    status = budgets.status()
    assert transport.connected
    assert not budgets.limits_updates
    assert status.run == (10**9, 2 * 10**9, 10**8)
    assert status.hour == ((6 * 10**9, 6 * 19 * 10**8 + 10**8, 10**8), 600), "updates count once"
    assert status.month == ((4320 * 10**9, 4320 * 19 * 10**8 + 10**8, 10**8), 600)
    budgets.may_update(10**12)


def test_a_restart_forgets_nothing(tmp_path, transport, clock):
    budgets = begin(tmp_path, transport, clock, mb_per_day=10.0, update_mb_per_day=1.0)
    transport.up, transport.updates = 9_000_000, 400_000
    clock.pass_s(60)
    budgets.save()
    clock.wall += DAY_S / 2
    again = begin(tmp_path, InMemoryTransport(), Clock(), mb_per_day=10.0)
    assert again.status().budget.left_bytes == pytest.approx(1_000_000 + 10e6 * 60 / DAY_S, abs=2)
    later = begin(tmp_path, InMemoryTransport(), clock, mb_per_day=10.0, update_mb_per_day=1.0)
    status = later.status()
    assert status.budget.left_bytes == pytest.approx(6_000_000, rel=0.01)
    assert status.update_budget.left_bytes == pytest.approx(1_100_000, rel=0.01)
    assert status.month.traffic.up > 0


@given(jump_s=st.floats(-1e9, 1e9))
def test_a_clock_that_jumps_gives_a_week_at_most_between_runs_and_nothing_within_one(tmp_path_factory, jump_s):
    state, clock, transport = tmp_path_factory.mktemp("state"), Clock(), InMemoryTransport()
    budgets = begin(state, transport, clock, mb_per_day=10.0)
    transport.up = 10_000_000
    budgets.charge()
    clock.wall = max(1.0, clock.wall + jump_s)
    clock.steady += 1
    assert budgets.status().budget.left_bytes == pytest.approx(10e6 / DAY_S, abs=1)
    budgets.save()
    before, clock.wall = clock.wall, max(1.0, clock.wall + jump_s)
    left = begin(state, InMemoryTransport(), clock, mb_per_day=10.0).status().budget.left_bytes
    passed_s = max(0.0, clock.wall - before)
    assert left == pytest.approx(min(DAYS * 10e6, 10e6 / DAY_S * (1 + passed_s)), abs=2)


def test_of_a_damaged_file_nothing_is_left_and_it_is_said(tmp_path, transport, clock, caplog):
    budgets = begin(tmp_path, transport, clock, mb_per_day=10.0)
    budgets.save()
    path = tmp_path / "traffic.json"
    for damage in (path.read_bytes()[:-9], b"{}", json.dumps({"at": 1.0, "left": 1e30}).encode(), b""):
        path.write_bytes(damage)
        again = begin(tmp_path, InMemoryTransport(), clock, mb_per_day=10.0)
        assert again.status().budget.left_bytes == 0
        assert "the budgets start with nothing left" in caplog.text
        caplog.clear()
    again.save()
    assert begin(tmp_path, InMemoryTransport(), clock, mb_per_day=10.0).status().budget.left_bytes == 0


def test_an_update_waits_until_the_date_that_is_said(tmp_path, transport, clock):
    budgets = begin(tmp_path, transport, clock, update_mb_per_day=1.0)
    budgets.may_update(900_000)
    transport.updates = 900_000
    with pytest.raises(WaitsForBudget, match=r"of --update-mb-per-day 1 are left 100.0 kB") as waits:
        budgets.may_update(900_000)
    assert waits.value.until == pytest.approx(clock.wall + (on_the_way(900_000) - 100_000) / 1e6 * DAY_S, abs=1)
    clock.pass_s(waits.value.until - clock.wall + 0.01)
    budgets.may_update(900_000)


def test_the_whole_budget_counts_for_updates_too(tmp_path, transport, clock):
    budgets = begin(tmp_path, transport, clock, mb_per_day=2.0, update_mb_per_day=10.0)
    with pytest.raises(WaitsForBudget, match="--mb-per-day 2 "):
        budgets.may_update(5_000_000)


def test_what_never_fits_says_what_would(tmp_path, transport, clock):
    budgets = begin(tmp_path, transport, clock, update_mb_per_day=1.0)
    with pytest.raises(
        WaitsForBudget, match=r"more than 7 days of --update-mb-per-day 1: make it at least 7.1,"
    ) as waits:
        budgets.may_update(46_000_000, needed=True)
    assert waits.value.until == float("inf")
    budgets = begin(tmp_path, transport, clock, update_mb_per_day=7.1)
    budgets.may_update(46_000_000, needed=True)  # on credit: there is nothing else to run
    with pytest.raises(WaitsForBudget, match="wait until"):
        budgets.may_update(46_000_000)


def test_a_state_directory_that_cannot_be_written_stops_nobody(tmp_path, transport, clock, caplog):
    (tmp_path / "state").write_text("a file")
    budgets = begin(tmp_path / "state", transport, clock, mb_per_day=10.0)
    budgets.save()
    assert "cannot be written" in caplog.text
