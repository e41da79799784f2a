"""What commands print of text that others have written."""

import io
import json
import sys
from collections import Counter
from contextlib import redirect_stdout

from hypothesis import given
from hypothesis import strategies as st

from streamsplit_compile.cli.printing import Steps, print_json, print_table

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b1A\u202e[bold red]:smile:\\"


def test_a_cell_is_neither_markup_nor_does_it_move_the_cursor(capsys):
    print_table("Devices", ["name", "cell"], [[HOSTILE, "[/]"]])
    printed = capsys.readouterr().out
    assert "[bold red]:smile:" in printed
    assert "[/]" in printed
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(printed)


@given(
    st.integers(1, 12).flatmap(
        lambda width: st.lists(
            st.lists(st.text("ab 1.,-%", min_size=1, max_size=30), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    )
)
def test_a_table_fits_80_columns_and_loses_nothing(rows):
    out = io.StringIO()
    with redirect_stdout(out):
        print_table("Title", [f"column {number}" for number in range(len(rows[0]))], rows)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    printed = Counter("".join(lines))
    for character in "ab1%":
        assert printed[character] >= sum(cell.count(character) for row in rows for cell in row)
    assert "…" not in out.getvalue()


def test_a_table_that_would_have_to_be_cut_is_a_list_of_its_rows(capsys):
    columns = [f"column {number}" for number in range(14)]
    print_table("Wide", columns, [["pi-1", *(f"{number}0000.5" for number in range(13))]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Wide", "pi-1"]
    assert "  column 1 00000.5; column 2 10000.5" in lines[2]


@given(st.text())
def test_json_is_plain_ascii_whatever_the_text(text):
    out = io.StringIO()
    with redirect_stdout(out):
        print_json({"text": text})
    assert out.getvalue().isascii()
    assert json.loads(out.getvalue()) == {"text": text}
    assert "\x1b" not in out.getvalue()


def test_a_closed_standard_output_takes_nothing_and_ends_nothing(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", None)
    print_table("Devices", ["name"], [["pi-1"]])
    with Steps() as steps:
        steps("compiling", 1, 2)
    assert capfd.readouterr() == ("", "")
