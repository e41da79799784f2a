"""A damaged spool: nothing is sent for ever, every frame is delivered or counted, and what can be read is sent."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from damaged_bytes import flip

from runtime_edge.formats import wire
from runtime_edge.transport.accounting import Accounting
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import Spool

MIB = 1 << 20
FRAMES = 60
PARTS = ["spool.db", "spool.db-wal", "spool.db.note"]


def payload_of(window: int) -> bytes:
    """Some lie in a row's page, others in pages of their own."""
    return random.Random(window).randbytes([300, 900, 6_000][window % 3])


def fill(spool: Spool, first: int, last: int) -> None:
    """Put windows, acknowledging each seventh."""
    for window in range(first, last):
        spool.put(f"pi.old.{window}", window, payload_of(window), window % 10 / 10)
        if window % 7 == 0:
            spool.ack([f"pi.old.{window}"])


def stored_ids() -> list[str]:
    return [f"pi.old.{window}" for window in range(FRAMES) if window % 7]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a spool as a device leaves it: closed, or killed so that half of it is in the log."""
    closed = tmp_path_factory.mktemp("closed")
    with closing(Spool(closed / "spool.db", MIB)) as spool:
        fill(spool, 0, FRAMES)
    running, killed = tmp_path_factory.mktemp("running"), tmp_path_factory.mktemp("killed")
    with closing(Spool(running / "spool.db", MIB)) as spool:
        fill(spool, 0, FRAMES // 2)
    with closing(Spool(running / "spool.db", MIB)) as spool:
        fill(spool, FRAMES // 2, FRAMES)
        for name in PARTS:
            shutil.copy(running / name, killed / name)
    return {"closed": closed, "killed": killed}


@pytest.fixture
def copied(whole: dict[str, Path], tmp_path: Path):  # type: ignore[no-untyped-def]
    def copy(name: str, number: int = 0) -> Path:
        folder = tmp_path / f"{name}-{number}"
        shutil.copytree(whole[name], folder)
        return folder

    return copy


def replayed(folder: Path, new: int = 3) -> tuple[list[str], Accounting, Spool]:
    """What a broker gets of the spool in a folder, after a device has put some more windows into it.

    Checks that nothing is sent twice, that each frame has its own payload, and that the sums are right at any time.
    """
    spool, accounting = Spool(folder / "spool.db", MIB), Accounting()
    store = FrameStore(spool, "pi.new.", accounting)
    sent: list[str] = []

    def check() -> None:
        depth = store.depth()
        own = depth - accounting.inherited
        dropped = sum(accounting.dropped.values())
        assert accounting.captured == accounting.acked + dropped + accounting.undecided + own
        assert accounting.inherited >= 0

    check()
    for window in range(new):
        store.put(f"pi.new.{window}", window, payload_of(window), 0.5, claim=False)
        check()
    while (frame := store.claim_oldest()) is not None:
        assert frame.message_id not in sent, "sent again"
        assert frame.message_id.endswith(f".{frame.index}")
        assert frame.payload == payload_of(frame.index)
        sent.append(frame.message_id)
        store.settle(frame.message_id, delivered=True)
        check()
    assert store.depth() == 0
    store.close()
    return sent, accounting, spool


def check_replay(folder: Path, at_most_lost: int, again: int = 0) -> int:
    """How many frames are lost; `again` may have been acknowledged once and be sent again."""
    sent, accounting, _ = replayed(folder)
    old = [name for name in sent if name.startswith("pi.old.")]
    lost = len(stored_ids()) - len(set(old) & set(stored_ids()))
    assert lost <= at_most_lost
    assert len(old) + accounting.inherited_dropped - len(stored_ids()) <= again
    assert accounting.inherited_dropped >= lost
    assert accounting.acked + accounting.dropped["spool_damaged"] == 3
    return lost


def bits(path: Path, count: int, seed: int) -> list[int]:
    """Bits of a file: half of them in its first 100 bytes, the others anywhere."""
    chosen, size = random.Random(seed), path.stat().st_size
    header = [8 * (100 * number // (count // 2)) + chosen.randrange(8) for number in range(count // 2)]
    return header + [chosen.randrange(8 * size) for _ in range(count - count // 2)]


MANY = pytest.param(4_000, marks=pytest.mark.slow)


@pytest.mark.integration
@pytest.mark.parametrize("count", [60, MANY])
def test_a_flipped_bit_costs_a_page_at_most(whole, copied, count: int) -> None:  # type: ignore[no-untyped-def]
    lost = []
    for number, bit in enumerate(bits(whole["closed"] / "spool.db", count, seed=count)):
        folder = copied("closed", number)
        flip(folder / "spool.db", bit)
        lost.append(check_replay(folder, at_most_lost=14))
        shutil.rmtree(folder)
    assert sum(lost) < len(lost), "most bits cost one frame or none"


@pytest.mark.parametrize("count", [40, MANY])
def test_a_flipped_bit_in_the_log_costs_what_was_written_after_it(whole, copied, count: int) -> None:  # type: ignore[no-untyped-def]
    for number, bit in enumerate(bits(whole["killed"] / "spool.db-wal", count, seed=count)):
        folder = copied("killed", number)
        flip(folder / "spool.db-wal", bit)
        check_replay(folder, at_most_lost=26, again=5)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["closed", "killed"])
@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_a_truncated_spool_loses_no_more_than_was_cut_off(whole, copied, name: str, count: int) -> None:  # type: ignore[no-untyped-def]
    part = "spool.db" if name == "closed" else "spool.db-wal"
    size = (whole[name] / part).stat().st_size
    for number in range(count):
        folder = copied(name, number)
        with (folder / part).open("r+b") as file:
            file.truncate(size * number // count)
        check_replay(folder, at_most_lost=51 if name == "closed" else 26, again=5)
        shutil.rmtree(folder)


@pytest.mark.parametrize("part", ["spool.db", "spool.db-wal", "both"])
@pytest.mark.parametrize("how", ["deleted", "emptied", "overwritten"])
def test_what_lay_in_a_lost_file_is_counted(copied, part: str, how: str) -> None:  # type: ignore[no-untyped-def]
    folder = copied("killed")
    for name in ["spool.db", "spool.db-wal"] if part == "both" else [part]:
        if how == "deleted":
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(b"" if how == "emptied" else b"something else altogether " * 4_000)
    lost = check_replay(folder, at_most_lost=51, again=5)
    if part == "both":
        assert lost == len(stored_ids())
    elif part == "spool.db-wal":
        assert 20 < lost <= 26, "the half that lay in the log"


def test_an_older_copy_has_lost_what_came_after_it(copied) -> None:  # type: ignore[no-untyped-def]
    folder = copied("closed")
    shutil.copy(folder / "spool.db", folder / "older")
    with closing(Spool(folder / "spool.db", MIB)) as spool:
        while frames := spool.oldest(8):
            spool.ack(frame.message_id for frame in frames)
        for window in range(100, 110):
            spool.put(f"pi.old.{window}", window, payload_of(window), 0.5)
    shutil.move(folder / "older", folder / "spool.db")
    _, accounting, spool = replayed(folder)
    assert accounting.inherited_dropped == spool.damaged == 10


def test_a_process_that_dies_during_the_rebuild_leaves_the_new_one_to_the_next(copied) -> None:  # type: ignore[no-untyped-def]
    folder = copied("closed")
    (folder / "spool.db").rename(folder / "spool.db.new")
    assert check_replay(folder, at_most_lost=0) == 0


@pytest.mark.parametrize("what", ["deleted", "replaced", "log deleted"])
def test_a_file_that_is_moved_away_while_it_is_open_costs_nothing(copied, what: str) -> None:  # type: ignore[no-untyped-def]
    folder = copied("closed")
    shutil.copy(folder / "spool.db", folder / "older")
    with closing(Spool(folder / "spool.db", MIB)) as spool:
        for window in range(100, 140):
            if window == 110 and what == "replaced":
                shutil.move(folder / "older", folder / "spool.db")
            elif window == 110:
                (folder / ("spool.db" if what == "deleted" else "spool.db-wal")).unlink()
            spool.put(f"pi.old.{window}", window, payload_of(window), 0.5)
        stored = [frame.message_id for frame in spool.oldest(1_000)]
        assert stored == stored_ids() + [f"pi.old.{window}" for window in range(100, 140)]
        assert (spool.recoveries, spool.damaged) == (1, 0)
    with closing(Spool(folder / "spool.db", MIB)) as spool:
        assert [frame.message_id for frame in spool.oldest(1_000)] == stored


@pytest.mark.parametrize(
    "column", ["message_id = 'pi.old.x'", "window_index = 7", "uncertainty = 0.77", "payload = x'00'"]
)
def test_a_changed_frame_is_dropped_and_counted_whatever_was_changed(copied, column: str) -> None:  # type: ignore[no-untyped-def]
    folder = copied("closed")
    with closing(sqlite3.connect(folder / "spool.db")) as other, other:
        other.execute(f"UPDATE frames SET {column} WHERE message_id = 'pi.old.1'")
    sent, accounting, spool = replayed(folder)
    assert sent[0] == "pi.old.2"
    assert (accounting.inherited_dropped, spool.damaged, spool.recoveries) == (1, 1, 0)


def test_every_changed_bit_of_a_frame_with_a_checksum_of_its_own_is_noticed(tmp_path: Path) -> None:
    frame = wire.encode_frame(7, 1_000, 1, 2, "int8", False, 0.5, bytes(range(20)))
    bits = 8 * len(frame)
    with closing(Spool(tmp_path / "spool.db", MIB)) as spool:
        for bit in range(bits + 1):
            spool.put(f"pi.old.{bit}", 7, frame, 0.5)
    with closing(sqlite3.connect(tmp_path / "spool.db")) as other, other:
        for bit in range(bits):
            changed = bytearray(frame)
            changed[bit // 8] ^= 1 << bit % 8
            other.execute("UPDATE frames SET payload = ? WHERE message_id = ?", (changed, f"pi.old.{bit}"))
    with closing(Spool(tmp_path / "spool.db", MIB)) as spool:
        assert [found.message_id for found in spool.oldest(2)] == [f"pi.old.{bits}"]
        assert spool.damaged == bits


def test_another_frame_in_the_place_of_a_frame_is_noticed(tmp_path: Path) -> None:
    frames = [wire.encode_frame(window, 1_000, 1, 2, "int8", False, 0.5, bytes(20)) for window in (0, 1)]
    with closing(Spool(tmp_path / "spool.db", MIB)) as spool:
        spool.put("pi.old.0", 0, frames[0], 0.5)
    with closing(sqlite3.connect(tmp_path / "spool.db")) as other, other:
        other.execute("UPDATE frames SET payload = ?", (frames[1],))
    with closing(Spool(tmp_path / "spool.db", MIB)) as spool:
        assert spool.oldest(1) == []
        assert spool.damaged == 1


def test_frames_of_this_run_that_are_damaged_are_counted_by_reason_even_while_they_are_sent(tmp_path: Path) -> None:
    accounting = Accounting()
    store = FrameStore(Spool(tmp_path / "spool.db", MIB), "pi.new.", accounting)
    for window in range(3):
        store.put(f"pi.new.{window}", window, payload_of(window), 0.5, claim=window < 2)
    with closing(sqlite3.connect(tmp_path / "spool.db")) as other, other:
        other.execute("UPDATE frames SET payload = x'00'")
    assert store.claim_oldest() is None
    assert (accounting.undecided, dict(accounting.dropped)) == (2, {"spool_damaged": 1})
    store.settle("pi.new.0", delivered=True)
    store.settle("pi.new.1", delivered=False)
    assert (accounting.acked, accounting.undecided, dict(accounting.dropped)) == (1, 0, {"spool_damaged": 2})
    assert accounting.lost(store.depth()) == store.depth() == 0
    store.close()
