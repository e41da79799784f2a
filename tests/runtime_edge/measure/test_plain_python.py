"""The fixed piece of Python: timed by the clock that is given."""

import itertools

import pytest

from runtime_edge.measure.plain_python import python_ms


def test_plain_python_is_timed_by_the_clock_that_is_given():
    ticks = itertools.count()
    assert python_ms(lambda: next(ticks) * 0.004) == pytest.approx(4.0)
