"""Releases come as often as the budgets of the devices allow, over restarts, and no single device stops them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.base.traffic.budget import on_the_way
from runtime_server.releases.rollout import Rollout, RolloutConfig
from runtime_server.releases.update_pace import UpdatePace

DAY_S = 86_400.0
START = 1_800_000_000.0
SIZE = 3_000_000
TAKES = on_the_way(SIZE)


def digest(number):
    return f"sha256:{number:064x}"


class Fleet:
    """A rollout with a clock."""

    def __init__(self, path, **config):
        self.now = START
        self.rollout = Rollout(path, RolloutConfig(canary_from=1000, **config), lambda: self.now)
        self.rollout.begin({1: digest(1)})
        self.pace = UpdatePace(self.rollout)

    def says(self, name, mb_per_day=None, **fields):
        told = {} if mb_per_day is None else {"update_budget": [mb_per_day, 0]}
        self.rollout.observe(name, {"bundle": digest(1), "on_trial": False, **told, **fields})

    def release(self, number, size=SIZE):
        self.rollout.offer(number, digest(number), {"patch_bytes": size, "full_bytes": 2 * size})
        self.rollout.promote(None)


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path / "rollout.json", update_mb_per_day=1.0)


def test_without_budgets_nothing_waits(tmp_path):
    fleet = Fleet(tmp_path / "rollout.json")
    fleet.says("pi-1")
    for number in range(2, 9):
        assert fleet.pace.objection(number, 10**12) == ("", 0.0)
        fleet.release(number, 10**12)
        assert fleet.pace.held == ""


def test_a_release_waits_until_its_bytes_are_there_and_the_next_one_again(fleet, tmp_path):
    said, until = fleet.pace.objection(2, SIZE)
    assert until - START == pytest.approx((TAKES - 1e6) / 1e6 * DAY_S, abs=1)  # it began with a day's worth
    assert said.startswith("generation 2 waits until 20")
    assert said.endswith("3.0 MB of the budget of 1 MB a day for updates")
    fleet.now = until + 1
    assert fleet.pace.objection(2, SIZE) == ("", 0.0)
    fleet.release(2)
    assert "the next release waits until" in fleet.pace.held
    again = Rollout(tmp_path / "rollout.json", RolloutConfig(update_mb_per_day=1.0), lambda: fleet.now)
    again.begin({1: digest(1), 2: digest(2)})
    assert UpdatePace(again).wait_s(SIZE) == pytest.approx(TAKES / 1e6 * DAY_S, abs=2), "a restart forgets nothing"
    fleet.now += TAKES / 1e6 * DAY_S
    assert fleet.pace.held == ""


def test_one_that_never_fits_is_not_offered(fleet):
    said, until = fleet.pace.objection(2, 8_000_000)
    assert said.startswith("generation 2 is not offered: 8.0 MB are more than 7 days")
    assert until == math.inf


@given(st.lists(st.tuples(st.floats(0, 10 * DAY_S), st.integers(1, 2_000_000)), max_size=20))
def test_over_any_time_releases_take_no_more_than_the_budget(tmp_path_factory, steps):
    fleet = Fleet(tmp_path_factory.mktemp("pace") / "rollout.json", update_mb_per_day=1.0)
    taken, number = 0, 1
    for passes_s, size in steps:
        fleet.now += passes_s
        if fleet.pace.wait_s(size) == 0:
            number += 1
            fleet.release(number, size)
            taken += on_the_way(size)
        assert taken <= 1e6 * (1 + (fleet.now - START) / DAY_S) + 1


def test_the_smallest_budget_of_a_few_devices_counts_and_of_many_what_all_but_a_tenth_have(tmp_path):
    fleet = Fleet(tmp_path / "rollout.json")
    fleet.says("pi-1", 5.0)
    fleet.says("pi-2")
    assert fleet.pace.per_day == 5e6
    fleet.says("pi-2", 2.0)
    assert fleet.pace.per_day == 2e6
    for number in range(3, 31):
        fleet.says(f"pi-{number}", 10.0)
    fleet.says("mallory", 1e-9)
    assert fleet.pace.per_day == 10e6, "one device in thirty does not slow down the others"
    fleet.now += 1000
    assert fleet.pace.per_day == math.inf, "they are gone"


def test_a_device_without_a_budget_for_it_is_listed_and_not_asked_to_prove_it(tmp_path):
    fleet = Fleet(tmp_path / "rollout.json", healthy_s=10.0)
    waits = {"generation": 2, "manifest": digest(2), "until": START + DAY_S, "reason": "waits"}
    fleet.says("pi-1")
    fleet.says("pi-2")
    fleet.rollout.offer(2, digest(2), {"patch_bytes": SIZE})
    fleet.now += 20
    fleet.says("pi-2", 1.0, update_waits=waits)
    fleet.rollout.observe("pi-1", {"bundle": digest(2), "on_trial": False})
    row = next(row for row in fleet.rollout.listing() if row["generation"] == 2)
    assert (row["waiting"], row["devices_waiting"]) == ({"pi-2": START + DAY_S}, 1)
    assert "1 of 1 devices are well" in fleet.rollout.decide()
