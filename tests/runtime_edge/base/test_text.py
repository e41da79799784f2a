"""Foreign text on a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.base.text import printable


@given(st.text())
def test_nothing_in_it_moves_the_cursor_or_turns_the_text(text):
    shown = printable(text, 40)
    assert shown.isprintable()
    assert len(shown) == min(len(text), 40)
    assert printable(shown, 40) == shown


def test_what_a_terminal_acts_on_is_replaced():
    assert printable("a\x1b[2Jb\n\u202ec\x9bd") == "a?[2Jb??c?d"
    assert printable("Käse 7 °C") == "Käse 7 °C"
