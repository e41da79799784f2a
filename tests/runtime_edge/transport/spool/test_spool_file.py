"""The spool's file: one of the first version, and disks that are full, read-only or slow."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtime_edge.base.worker import Worker
from runtime_edge.errors import SpoolError
from runtime_edge.transport.accounting import Accounting
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import Spool, SpoolCounters, SpooledFrame
from tools.small_disk import small_disk

MIB = 1 << 20
FIRST_VERSION = Path(__file__).parents[3] / "data" / "spool-v1.db"
"""Written by version 0.1.0: windows 0 to 5 put, 0 and 4 acknowledged."""
FRAMES = [SpooledFrame(f"pi.old.{n}", n, bytes([n]) * (5_000 if n == 2 else 100 + n), n / 10) for n in (1, 2, 3, 5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def test_a_spool_of_the_first_version_keeps_its_frames_and_counters(path: Path) -> None:
    shutil.copy(FIRST_VERSION, path)
    with closing(Spool(path, MIB)) as spool:
        assert spool.oldest(9) == FRAMES
        assert spool.counters() == SpoolCounters(put=6, acked=2, dropped=0)
        assert (spool.recoveries, spool.damaged) == (0, 0)
        spool.put("pi.new.0", 0, b"new", 0.5)
        spool.ack(["pi.old.1", "pi.old.5"])
    with closing(Spool(path, MIB)) as spool:
        assert spool.oldest(9) == [*FRAMES[1:3], SpooledFrame("pi.new.0", 0, b"new", 0.5)]
        assert spool.counters() == SpoolCounters(put=7, acked=4, dropped=0)


@pytest.mark.parametrize("byte", [17, 18, 40, 61, 70, 4_000])
def test_a_first_version_s_damaged_first_page_costs_no_frame(path: Path, byte: int) -> None:
    data = bytearray(FIRST_VERSION.read_bytes())
    data[byte] ^= 4
    path.write_bytes(data)
    with closing(Spool(path, MIB)) as spool:
        assert spool.oldest(9) == FRAMES
        assert spool.depth() == 4


def test_the_index_by_uncertainty_is_made_when_the_spool_is_full_and_stays(path: Path) -> None:
    def indices() -> list[str]:
        with closing(sqlite3.connect(path)) as db:
            return [
                name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")
            ]

    with closing(Spool(path, 4 * 1128)) as spool:
        for number in range(4):
            spool.put(f"a.{number}", number, bytes(1000), number / 10)
        assert indices() == []
        assert spool.put("a.4", 4, bytes(1000), 0.5) == ["a.0"]
        assert indices() == ["least_informative"]
    with closing(Spool(path, 4 * 1128)) as spool:
        assert spool.put("a.5", 5, bytes(1000), 0.15) == ["a.1"]
        assert [frame.index for frame in spool.oldest(9)] == [2, 3, 4, 5]
        assert (spool.recoveries, spool.damaged) == (0, 0)


@pytest.mark.parametrize("version", [3, 17])
def test_a_spool_of_a_newer_version_is_left_alone(path: Path, version: int) -> None:
    shutil.copy(FIRST_VERSION, path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("ALTER TABLE frames ADD COLUMN added_later")
        other.execute(f"PRAGMA user_version = {version}")
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("PRAGMA journal_mode = WAL")
    before = path.read_bytes()
    with pytest.raises(SpoolError, match="not a spool of this version"):
        Spool(path, MIB)
    assert path.read_bytes() == before


@pytest.fixture(name="small_disk")
def small_disk_of_2_mb(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    with small_disk(place, 2) as mounted:
        if not mounted:
            pytest.skip("a small file system cannot be mounted here: root is needed")
        yield place


def put_all(store: FrameStore, first: int, last: int) -> None:
    for window in range(first, last):
        store.put(f"pi.new.{window}", window, bytes([window]) * 3_000, 0.5, claim=False)


def replay(store: FrameStore) -> list[int]:
    sent: list[int] = []
    while (frame := store.claim_oldest()) is not None:
        assert len(sent) < 1_000, "sent for ever"
        sent.append(frame.index)
        store.settle(frame.message_id, delivered=True)
    return sent


def fill_disk(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4_096)):
            pass
    return filler


def check_sums(store: FrameStore, accounting: Accounting) -> None:
    depth = store.depth()
    assert accounting.captured == accounting.acked + sum(accounting.dropped.values()) + depth


def test_a_full_disk_refuses_frames_and_keeps_those_it_has(small_disk: Path) -> None:
    accounting = Accounting()
    store = FrameStore(Spool(small_disk / "spool.db", MIB), "pi.new.", accounting)
    put_all(store, 0, 20)
    filler = fill_disk(small_disk)
    put_all(store, 20, 80)
    refused = accounting.dropped["spool_refused"]
    assert refused > 0
    check_sums(store, accounting)
    assert len(replay(store)) == 80 - refused
    filler.unlink()
    put_all(store, 80, 90)
    assert replay(store) == list(range(80, 90))
    check_sums(store, accounting)
    assert accounting.acked == 90 - refused
    store.close()


def test_a_spool_damaged_on_a_full_disk_waits_there_until_it_can_be_rebuilt(small_disk: Path) -> None:
    path = small_disk / "spool.db"
    with closing(Spool(path, MIB)) as spool:
        for window in range(20):
            spool.put(f"pi.old.{window}", window, bytes(3_000), 0.5)
    data = bytearray(path.read_bytes())
    data[18] ^= 4
    path.write_bytes(data)
    filler = fill_disk(small_disk)
    with pytest.raises(SpoolError, match="free space"):
        Spool(path, MIB)
    filler.unlink()
    accounting = Accounting()
    store = FrameStore(Spool(path, MIB), "pi.new.", accounting)
    assert replay(store) == list(range(20))
    assert accounting.inherited == accounting.inherited_dropped == 0
    store.close()


@pytest.mark.integration
def test_a_disk_that_no_longer_writes_refuses_frames_and_each_one_is_sent_once(path: Path) -> None:
    accounting = Accounting()
    store = FrameStore(Spool(path, MIB), "pi.new.", accounting)
    put_all(store, 0, 2)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # reads go on, no write does
        assert replay(store) == [0, 1]
        assert store.depth() == 0
        put_all(store, 2, 3)
        assert dict(accounting.dropped) == {"spool_refused": 1}
        check_sums(store, accounting)
        other.execute("ROLLBACK")
    put_all(store, 3, 4)
    assert replay(store) == [3]
    check_sums(store, accounting)
    store.close()


def test_a_spool_on_a_read_only_disk_is_one_error(small_disk: Path) -> None:
    with closing(Spool(small_disk / "spool.db", MIB)) as spool:
        spool.put("pi.old.0", 0, b"x", 0.5)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SpoolError, match="disk refuses"):
        Spool(small_disk / "spool.db", MIB)


class SlowSpool(Spool):
    """A disk whose first write takes as long as one lets it."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(path, max_bytes)
        self.writing, self.done = threading.Event(), threading.Event()

    def put(self, message_id: str, index: int, payload: bytes, uncertainty: float) -> list[str]:
        self.writing.set()
        assert self.done.wait(60.0)
        return super().put(message_id, index, payload, uncertainty)


def test_while_a_slow_disk_writes_the_loop_goes_on_and_nothing_is_lost(path: Path) -> None:
    spool, accounting = SlowSpool(path, MIB), Accounting()
    store = FrameStore(spool, "pi.new.", accounting)

    async def loop() -> list[int]:
        with Worker() as worker:
            capture = asyncio.create_task(worker.run(put_all, store, 0, 5))
            await asyncio.to_thread(spool.writing.wait)
            store.settle_soon("pi.new.0", delivered=True)  # the broker's acknowledgement waits for nobody
            sent = asyncio.create_task(worker.run(replay, store))
            await asyncio.sleep(0)
            assert not sent.done()
            spool.done.set()
            found = await sent
            await capture
            return found

    assert asyncio.run(loop()) == [1, 2, 3, 4]
    assert (accounting.captured, accounting.acked) == (5, 5)
    check_sums(store, accounting)
    store.close()
