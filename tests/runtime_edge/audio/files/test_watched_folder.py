"""Recordings that come into a folder are read once each, when they are complete, over restarts."""

import contextlib
import itertools
import os

import numpy as np
import pytest
import soundfile

from runtime_edge.audio import Counters, Windower
from runtime_edge.audio.files.watched_folder import LOOK_S, STILL_S, WatchedFolder
from runtime_edge.audio.live import IdleWaiter
from runtime_edge.audio.source import open_watched
from runtime_edge.errors import SourceError, UsageError

RATE = 4000
LOOKS = int(STILL_S / LOOK_S) + 1


class Stopped(Exception):
    """Raised where nothing more happens."""


class Time:
    """A clock that looks move on; `at[n]` is done before look n, and then nothing more happens."""

    def __init__(self, **at):
        self.now, self.looks, self._at = 0.0, 0, {int(name[1:]): act for name, act in at.items()}

    def monotonic(self):
        return self.now

    def look(self):
        if act := self._at.get(self.looks):
            act()
        if self.looks > LOOKS + max(self._at, default=0):
            raise Stopped
        self.looks += 1
        self.now += LOOK_S


@pytest.fixture
def place(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path


def put(path, text="sound", age_s=0):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(10**18 - age_s * 10**9,) * 2)
    return path


def read(place, time=None):
    """Names of what was read until nothing happens any more."""
    time, found = time or Time(), []
    folder = WatchedFolder(place / "in", place / "read.jsonl", time.monotonic)
    with contextlib.suppress(Stopped):
        for path in folder.recordings(time.look):
            found.append(path.relative_to(place / "in").as_posix())
    return found


def test_what_is_there_and_what_comes_is_read_once_in_the_order_of_its_time(place):
    put(place / "in" / "b.wav", age_s=9)
    put(place / "in" / "a.wav", age_s=5)
    put(place / "in" / "notes.txt")
    assert read(place, Time(_3=lambda: put(place / "in" / "day 2" / "c.flac"))) == ["b.wav", "a.wav", "day 2/c.flac"]
    assert read(place) == [], "after a restart"
    put(place / "in" / "d.wav")
    assert read(place) == ["d.wav"]


def test_a_recording_that_grows_is_not_read_before_it_is_still(place):
    path, sizes = place / "in" / "long.wav", []

    def grow():
        put(path, "sound" * (len(sizes) + 1))
        sizes.append(path.stat().st_size)

    time = Time(**{f"_{number}": grow for number in range(2 * LOOKS)})
    folder = WatchedFolder(place / "in", place / "read.jsonl", time.monotonic)
    seen = []
    with contextlib.suppress(Stopped):
        for found in folder.recordings(time.look):
            seen.append((found.stat().st_size, time.now))
    assert seen == [(sizes[-1], pytest.approx(2 * LOOKS * LOOK_S + STILL_S, abs=LOOK_S))]


def test_unfinished_and_hidden_files_wait_for_their_names(place):
    part = put(place / "in" / "new.part.wav")
    put(place / "in" / ".hidden.wav")
    assert read(place, Time(_5=lambda: part.rename(place / "in" / "new.wav"))) == ["new.wav"]


def test_one_that_is_written_over_is_another_recording(place):
    put(place / "in" / "latest.wav")
    assert read(place) == ["latest.wav"]
    put(place / "in" / "latest.wav", age_s=-60)
    assert read(place) == ["latest.wav"]
    assert read(place) == []


def test_the_one_being_read_at_a_crash_is_read_again(place):
    for name in "abc":
        put(place / "in" / f"{name}.wav", age_s=-ord(name))
    time = Time()
    folder = WatchedFolder(place / "in", place / "read.jsonl", time.monotonic)
    assert [path.name for path in itertools.islice(folder.recordings(time.look), 2)] == ["a.wav", "b.wav"]
    assert read(place) == ["b.wav", "c.wav"]


def test_a_damaged_memory_costs_one_recording_read_again_and_is_told(place, caplog):
    for name in "ab":
        put(place / "in" / f"{name}.wav", age_s=-ord(name))
    read(place)
    kept = (place / "read.jsonl").read_bytes()
    (place / "read.jsonl").write_bytes(kept[:-5])
    assert read(place) == ["b.wav"]
    assert "read.jsonl: line 2 is damaged: that recording is read again" in caplog.text


def test_what_is_gone_is_forgotten(place):
    put(place / "in" / "a.wav")
    read(place)
    (place / "in" / "a.wav").unlink()
    read(place)
    assert (place / "read.jsonl").read_bytes() == b""


def test_names_of_any_bytes_are_remembered(place):
    name = os.fsdecode(b"caf\xe9.wav")
    put(place / "in" / name)
    assert read(place) == [name]
    assert read(place) == []


def test_a_folder_that_is_not_there_is_named(place):
    with pytest.raises(SourceError, match="gone: no such directory: make it, or watch another one"):
        WatchedFolder(place / "gone", place / "read.jsonl")
    with pytest.raises(UsageError, match="speed"):
        open_watched(place / "in", place / "read.jsonl", RATE, speed=2.0)


def test_a_source_plays_them_and_goes_on_after_one_that_cannot_be_read(place):
    random = np.random.default_rng(0)
    soundfile.write(put(place / "in" / "1.wav"), random.uniform(-0.5, 0.5, 2 * RATE), RATE)
    put(place / "in" / "2.wav", "no sound")
    soundfile.write(put(place / "in" / "3.wav"), random.uniform(-0.5, 0.5, 300), RATE)
    for number in (1, 2, 3):
        os.utime(place / "in" / f"{number}.wav", (10**9 + number, 10**9 + number))

    class Waiter(IdleWaiter):
        looks = 0

        def wait(self, until, timeout_s=None):
            self.looks += 1
            if self.looks > 6:
                raise Stopped
            return super().wait(until, timeout_s)

    counters, found = Counters(), []
    blocks = open_watched(place / "in", place / "read.jsonl", RATE, counters=counters, waiter=Waiter())
    with contextlib.suppress(Stopped):
        for window in Windower(1000, 500, counters=counters).windows(blocks):
            found.append((os.path.basename(window.file), window.file_offset))
    assert found == [*(("1.wav", 500 * number) for number in range(15)), ("3.wav", 0)]
    assert counters.files_skipped == 1


def test_one_that_is_written_over_before_its_turn_is_read_when_it_is_complete_again(place):
    for name in "ab":
        put(place / "in" / f"{name}.wav", age_s=-ord(name))
    time, seen = Time(_9=lambda: None), []
    folder = WatchedFolder(place / "in", place / "read.jsonl", time.monotonic)
    for path in itertools.islice(folder.recordings(time.look), 2):
        seen.append(path.read_text())
        if path.name == "a.wav":
            put(place / "in" / "b.wav", "another b", age_s=-500)
    assert seen == ["sound", "another b"]
    assert read(place) == ["b.wav"], "the second one was being read when the program ended"


def test_a_memory_that_cannot_be_written_ends_nothing(place, caplog):
    put(place / "in" / "a.wav")
    time = Time(_9=lambda: put(place / "in" / "b.wav"))
    folder = WatchedFolder(place / "in", place / "in" / "a.wav" / "read.jsonl", time.monotonic)
    assert [path.name for path in itertools.islice(folder.recordings(time.look), 2)] == ["a.wav", "b.wav"]
    assert "cannot be written" in caplog.text
