"""Q as a table file holds it: rounded, but never so that another action than the best is taken."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.errors import TableError
from runtime_edge.formats.records.table_values import as_stored, packed, unpacked


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1000, 1000), min_size=4, max_size=4), min_size=6, max_size=6)
    | st.lists(st.lists(st.floats(9.9, 10), min_size=4, max_size=4), min_size=6, max_size=6)
)
def test_the_best_action_stays_the_best(q: list[list[float]]) -> None:
    for values, best in zip(q, as_stored(q).argmax(1), strict=True):
        assert values[best] == max(values) or max(values) - values[best] < 2.0**-24, "below float16's least step"


def test_a_difference_to_the_best_is_off_by_a_2048th_of_itself_at_most() -> None:
    q = np.random.default_rng(0).uniform(-32, 32, (50, 4))
    below, stored = q - q.max(1, keepdims=True), as_stored(q) - as_stored(q).max(1, keepdims=True)
    assert np.abs(as_stored(q).max(1) - q.max(1)).max() <= 2.0**-11
    assert (np.abs(stored - below) <= np.abs(below) * 2.0**-11).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.floats(-65504, 65504), min_size=3, max_size=3), min_size=1, max_size=5))
def test_what_is_unpacked_is_what_was_packed_and_rounding_twice_changes_nothing(q: list[list[float]]) -> None:
    stored = as_stored(q)
    assert not np.signbit(stored[stored == 0]).any()
    values, below = packed(stored)
    assert (unpacked(values, below, len(q), 3) == stored).all()
    assert packed(unpacked(values, below, len(q), 3)) == (values, below)


@pytest.mark.parametrize("value", [math.nan, math.inf, 65536.0])
def test_what_cannot_be_held_is_refused(value: float) -> None:
    with pytest.raises(TableError, match="q: not all finite and within 65504"):
        as_stored([[value, 0.0]])


def test_the_numbers_of_a_usual_table_take_little_more_than_half_the_room_they_took_as_text() -> None:
    q = np.random.default_rng(0).uniform(-20, 20, (960, 4))
    as_text = len(json.dumps(np.round(q, 3).tolist(), separators=(",", ":")))
    assert sum(len(base64.b64encode(part)) for part in packed(q)) < 0.55 * as_text
