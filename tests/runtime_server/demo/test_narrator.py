"""What the demo says on a terminal, and elsewhere."""

from __future__ import annotations

import io

from virtual_time import VirtualTime

from runtime_server.demo.narrator import Narrator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_stay_and_a_progress_line_follows_them() -> None:
    time, terminal = VirtualTime(), Terminal()
    say = Narrator(stream=terminal, clock=time.clock)
    say.expect("compiling", 90.0)
    time.seconds += 30.0
    say("pi-wifi  rain  0.99  right")
    say.end()

    assert terminal.getvalue() == (
        "\r\x1b[K... about 1:30 min left · compiling"
        "\r\x1b[K[ 30 s] pi-wifi  rain  0.99  right\n"
        "\r\x1b[K... about 1:00 min left · compiling"
        "\r\x1b[K"
    )


def test_the_progress_line_fits_80_columns_and_says_when_it_was_wrong() -> None:
    time = VirtualTime()
    say = Narrator(stream=Terminal(), clock=time.clock)
    say.expect("x" * 200, 5.0)
    time.seconds += 60.0

    assert len(say.progress) == 79
    assert say.progress.startswith("... longer than usual · xx")


def test_where_nobody_watches_there_are_lines_alone() -> None:
    stream = io.StringIO()
    say = Narrator(stream=stream)
    say.expect("compiling", 90.0)
    say("hello\x1b[31m")

    assert stream.getvalue().endswith("hello?[31m\n")
    assert "\r" not in stream.getvalue()


def test_quiet_is_quiet() -> None:
    stream = Terminal()
    say = Narrator(quiet=True, stream=stream)
    say.expect("compiling", 90.0)
    say("hello")

    assert stream.getvalue() == ""
