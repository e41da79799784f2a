"""The line on a terminal: written over, cut to its width, and nowhere else."""

import io
from types import SimpleNamespace

import pytest

from runtime_edge.cli.live_line import LiveLine, live_line


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def lines(self):
        return self.getvalue().split("\r\x1b[K")[1:]


def result(**fields):
    usual = {"revises": 0, "finished": "server", "detected": None, "cut": "stem", "latency_ms": 12.4}
    return SimpleNamespace(**{**usual, **fields})


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_it_counts_windows_and_says_what_is_heard():
    terminal, now = Terminal(), iter(range(100))
    line = LiveLine(terminal, "pi-1", clock=lambda: next(now))
    line.put(result())
    line.put(result(revises=1, finished="exit"))
    line.put(result(finished="device", detected=["rain", "dog\x1b[2J"]))
    line.close()
    assert terminal.lines == [
        "pi-1: waiting for the first window",
        "pi-1: 1 windows (1 server), now cut stem, 12 ms",
        "pi-1: 1 windows (1 server), now cut stem, 12 ms",
        "pi-1: 2 windows (1 device, 1 server), now cut stem, 12 ms; rain, dog?[2J",
        "",
    ]


def test_it_is_not_written_more_often_than_a_person_can_read():
    terminal, now = Terminal(), iter(number / 100 for number in range(1000))
    line = LiveLine(terminal, "pi-1", clock=lambda: next(now))
    for _ in range(100):
        line.put(result())
    assert len(terminal.lines) == 6
    line.close()
    assert "100" not in terminal.getvalue()


def test_it_fits_into_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    LiveLine(terminal, "pi-1").put(result(detected=["a label that is long"]))
    assert max(map(len, terminal.lines)) == 29


@pytest.mark.parametrize(("stream", "wanted", "there"), [(Terminal(), True, 1), (Terminal(), False, 0),
                                                          (io.StringIO(), True, 0), (None, True, 0)])  # fmt: skip
def test_it_is_there_where_a_person_looks_and_wants_it(stream, wanted, there):
    assert len(live_line(stream, "pi-1", wanted)) == there
