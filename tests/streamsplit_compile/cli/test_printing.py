"""What commands print of text that others have written."""

import io
import json
import sys
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
