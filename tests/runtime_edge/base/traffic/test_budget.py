"""A budget against a drawer of slips: each is an hour's worth, good for seven days, and the oldest is spent first."""

from collections import deque
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.base.traffic.budget import DAY_S, DAYS, Budget, on_the_way

HOUR_S = 3600.0
PER_DAY = 24_000
STEPS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 12 * PER_DAY)), max_size=30)
"""Hours that pass, and bytes that are spent then."""


class Drawer:
    """Exact, and written without the formula that it is compared with."""

    def __init__(self):
        self.hour, self.debt = 0, Fraction(0)
        self.slips = deque((hour, Fraction(PER_DAY, 24)) for hour in range(-23, 1))

    def pass_hours(self, hours):
        for _ in range(hours):
            self.hour += 1
            new = Fraction(PER_DAY, 24)
            paid = min(new, self.debt)
            self.debt -= paid
            self.slips.append((self.hour, new - paid))
            while self.slips and self.slips[0][0] <= self.hour - DAYS * 24:
                self.slips.popleft()

    def spend(self, count):
        while count and self.slips:
            born, worth = self.slips.popleft()
            taken = min(worth, count)
            count -= taken
            if worth > taken:
                self.slips.appendleft((born, worth - taken))
        self.debt = min(self.debt + count, Fraction(DAYS * PER_DAY))

    @property
    def left(self):
        return sum(worth for _, worth in self.slips) - self.debt


@given(STEPS)
def test_what_is_unused_adds_up_for_seven_days_and_what_is_owed_is_paid_first(steps):
    budget, drawer = Budget.begun(PER_DAY), Drawer()
    for hours, count in steps:
        budget, _ = budget.after(hours * HOUR_S), drawer.pass_hours(hours)
        assert budget.left == pytest.approx(float(drawer.left), abs=1e-3)
        budget, _ = budget.spent(count), drawer.spend(count)
        assert budget.left == pytest.approx(float(drawer.left), abs=1e-3)


@given(st.floats(1, 1e12), st.floats(-1e13, 1e13), st.floats(0, 1e14))
def test_it_fits_at_the_time_that_is_said_and_not_before(per_day, left, count):
    budget = Budget.kept(per_day, left)
    wait_s = budget.wait_s(count)
    if count > DAYS * per_day:
        assert wait_s == float("inf")
        assert budget.after(1e9).left < count
        return
    assert budget.after(wait_s).left >= count * (1 - 1e-9) - 1e-3
    assert (wait_s == 0) == (budget.left >= count)
    if wait_s > 1:
        assert budget.after(0.99 * wait_s).left < count


@given(STEPS, st.floats(-1e12, 0))
def test_a_time_before_now_neither_gives_nor_takes(steps, seconds):
    budget = Budget.begun(PER_DAY)
    for hours, count in steps:
        budget = budget.after(hours * HOUR_S).spent(count)
    assert budget.after(seconds) == budget


@given(st.floats(1, 1e12), st.floats(-1e15, 1e15), st.floats(0, 1e15))
def test_neither_more_than_a_week_is_kept_nor_owed(per_day, left, count):
    kept = Budget.kept(per_day, left)
    assert -kept.most <= kept.spent(count).left <= kept.left <= kept.after(DAYS * DAY_S).left <= kept.most


def test_what_a_message_takes_is_more_than_its_bytes():
    assert on_the_way(0) == 200
    assert on_the_way(1_000_000) == 1_070_200
