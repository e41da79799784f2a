"""Foreign text on a terminal; amounts, times and dates as people read them."""

import datetime as dt
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.base.text import duration, moment, printable, size


@given(st.text())
def test_nothing_in_it_moves_the_cursor_or_turns_the_text(text):
    shown = printable(text, 40)
    assert shown.isprintable()
    assert len(shown) == min(len(text), 40)
    assert printable(shown, 40) == shown


def test_what_a_terminal_acts_on_is_replaced():
    assert printable("a\x1b[2Jb\n\u202ec\x9bd") == "a?[2Jb??c?d"
    assert printable("Käse 7 °C") == "Käse 7 °C"


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (2.5e9, "2.5 GB"),
     (7e13, "70000.0 GB"), (-1500, "-1.5 kB")],
)  # fmt: skip
def test_bytes_have_four_digits_at_most_and_a_unit(count, said):
    assert size(count) == said


def test_a_span_has_two_of_its_unit_at_least():
    spans = [1, 119, 120, 7199, 7200, 172_799, 172_800]
    assert [duration(seconds) for seconds in spans] == ["1 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 d"]


@given(st.floats(1e9, 4e9))
def test_a_moment_is_never_too_early_nor_a_minute_late(at):
    said = dt.datetime.strptime(moment(at), "%Y-%m-%d %H:%M").astimezone().timestamp()
    assert -1e-3 <= said - at <= 60 or abs(said - at) >= 3540  # the hour that a clock shows twice


def test_what_never_comes_has_no_date():
    assert moment(math.inf) == "never"
