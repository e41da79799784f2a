"""Lines to what stands still, fails or goes away."""

from __future__ import annotations

import errno
import threading

import pytest
from waiting import until

from runtime_edge.base.line_writer import MAX_WAITING, LineWriter


class File:
    """Takes a few bytes at a time; fails as it is told."""

    def __init__(self) -> None:
        self.data, self.closed, self.fails = b"", False, []
        self.open = threading.Event()
        self.open.set()

    def fileno(self) -> int:
        raise AssertionError("it never has no room")

    def write(self, data: memoryview) -> int:
        self.open.wait()
        if self.fails and (failure := self.fails.pop(0)) is not None:
            raise failure
        taken = bytes(data[:3])
        self.data += taken
        return len(taken)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def said() -> list[str]:
    return []


def test_lines_are_written_whole_and_in_order_and_the_file_is_closed(said: list[str]) -> None:
    file = File()
    writer = LineWriter(lambda: file, said.append)
    for number in range(100):
        writer.put(b"line %d\n" % number)
    writer.close(60.0)

    assert file.data.decode().splitlines() == [f"line {number}" for number in range(100)]
    assert (file.closed, writer.waiting, writer.dropped, said) == (True, 0, 0, [])


def test_a_file_that_stands_still_costs_lines_and_this_is_said_once(said: list[str]) -> None:
    file = File()
    file.open.clear()
    writer = LineWriter(lambda: file, said.append)
    for number in range(MAX_WAITING + 10):
        writer.put(b"%d\n" % number)
    assert (writer.dropped, writer.has_room) == (10, False)
    assert [text.partition(",")[0] for text in said] == ["is not read"]

    file.open.set()
    until(lambda: writer.has_room, what="lines are written")
    writer.close(60.0)

    assert file.data.decode().splitlines() == [str(number) for number in range(MAX_WAITING)]
    assert said[1:] == ["10 lines were dropped"]


def test_a_file_that_stands_still_at_the_end_is_not_waited_for(said: list[str]) -> None:
    file = File()
    file.open.clear()
    writer = LineWriter(lambda: file, said.append)
    for _ in range(3):
        writer.put(b"x\n")
    writer.close(0.01)

    assert said == ["3 lines were dropped"]
    file.open.set()


def test_a_full_disk_costs_lines_is_said_once_and_leaves_no_line_joined_to_half_another(said: list[str]) -> None:
    file, full = File(), OSError(errno.ENOSPC, "No space left on device")
    file.fails = [None, full, full, None]  # the first line is torn after three bytes
    writer = LineWriter(lambda: file, said.append)
    for line in (b"first\n", b"second\n", b"third\n"):
        writer.put(line)
    writer.close(60.0)

    assert file.data == b"fir\nthird\n"
    assert writer.dropped == 2
    assert said == [
        "cannot be written (No space left on device): lines are dropped until it can",
        "2 lines were dropped",
    ]


def test_a_reader_who_has_gone_for_good_is_mentioned_once(said: list[str]) -> None:
    file = File()
    file.fails = [BrokenPipeError()]
    writer = LineWriter(lambda: file, said.append)
    for _ in range(5):
        writer.put(b"x\n")
    writer.close(60.0)

    assert writer.gone
    assert writer.has_room, "nobody need wait for it"
    assert said == ["its reader has gone", "5 lines were dropped"]


def test_a_named_pipe_is_opened_again_for_its_next_reader(said: list[str]) -> None:
    files = [File(), File()]
    files[0].fails = [None, BrokenPipeError()]
    opened = iter(files)
    writer = LineWriter(lambda: next(opened), said.append, reopens=True)
    for line in (b"ab\n", b"cd\n", b"ef\n"):
        writer.put(line)
    writer.close(60.0)

    assert (files[0].data, files[1].data) == (b"ab\n", b"ef\n")
    assert (writer.gone, writer.dropped) == (False, 1)
