"""The spool against a plain list, a killed process, damaged files and full disks."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.errors import SpoolError, SscError
from runtime_edge.transport.spool.spool import ROW_BYTES, Spool, SpoolCounters, SpooledFrame

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "spool.db"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    with closing(Spool(path, MIB)) as opened:
        yield opened


def fill(spool: Spool, count: int, size: int = 1_000) -> None:
    for index in range(count):
        spool.put(f"d-b-{index}", index, bytes([index % 256]) * size, index / count)


def ids(spool: Spool) -> list[str]:
    return [frame.message_id for frame in spool.oldest(10_000)]


def test_frames_come_back_oldest_first_and_stay_until_acknowledged(spool: Spool) -> None:
    fill(spool, 5)

    assert spool.oldest(2) == [
        SpooledFrame("d-b-0", 0, bytes(1_000), 0.0),
        SpooledFrame("d-b-1", 1, b"\x01" * 1_000, 0.2),
    ]
    spool.ack(["d-b-0", "d-b-3", "unknown"])
    spool.ack(["d-b-0"])

    assert ids(spool) == ["d-b-1", "d-b-2", "d-b-4"]
    assert spool.counters() == SpoolCounters(put=5, acked=2, dropped=0)
    assert (spool.depth(), spool.bytes()) == (3, 3 * (1_000 + ROW_BYTES))
    assert spool.oldest(0) == spool.oldest(-1) == []


def test_the_same_id_twice_is_stored_once(spool: Spool) -> None:
    spool.put("a", 1, b"first", 0.5)
    spool.put("a", 2, b"second", 0.9)

    assert spool.oldest(9) == [SpooledFrame("a", 1, b"first", 0.5)]
    assert spool.counters().put == 1


def test_frames_and_counters_outlive_a_restart(path: Path) -> None:
    with closing(Spool(path, MIB)) as spool:
        fill(spool, 4)
        spool.ack(["d-b-1"])

    with closing(Spool(path, MIB)) as spool:
        assert ids(spool) == ["d-b-0", "d-b-2", "d-b-3"]
        assert spool.counters() == SpoolCounters(put=4, acked=1, dropped=0)


def test_the_least_informative_goes_first_and_the_oldest_among_equals(path: Path) -> None:
    with closing(Spool(path, 3 * (100 + ROW_BYTES))) as spool:
        for name, uncertainty in [("a", 0.5), ("b", 0.2), ("c", 0.2), ("d", 0.9), ("e", 0.5)]:
            spool.put(name, 0, bytes(100), uncertainty)

        assert ids(spool) == ["a", "d", "e"]
        spool.put("dull", 0, bytes(100), 0.1)
        assert ids(spool) == ["a", "d", "e"], "a frame duller than all that is stored is the one to go"
        spool.put("odd", 0, bytes(100), float("nan"))
        assert ids(spool) == ["a", "d", "e"]
        assert spool.counters() == SpoolCounters(put=7, acked=0, dropped=4)


def test_a_frame_larger_than_the_spool_is_refused_and_nothing_is_dropped_for_it(path: Path) -> None:
    with closing(Spool(path, 1_000)) as spool:
        spool.put("a", 0, bytes(500), 0.1)
        with pytest.raises(SpoolError, match="window 7 needs 1129 bytes, the spool holds 1000") as caught:
            spool.put("b", 7, bytes(1_001), 1.0)

        assert str(path) in str(caught.value)
        assert ids(spool) == ["a"]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 30), st.integers(0, 900), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        st.tuples(st.just("ack"), st.lists(st.integers(0, 30), max_size=5)),
        st.tuples(st.just("restart")),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(operations=operations)
def test_any_history_leaves_what_a_list_would_hold(operations: list[tuple]) -> None:  # type: ignore[type-arg]
    bound = 2_500
    model: list[tuple[str, int, float]] = []
    put = acked = dropped = 0
    with tempfile.TemporaryDirectory() as directory:
        spool = Spool(Path(directory, "s.db"), bound)
        for name, *arguments in operations:
            if name == "put":
                number, size, uncertainty = arguments
                spool.put(f"id{number}", number, bytes(size), uncertainty)
                if f"id{number}" not in [row[0] for row in model]:
                    put += 1
                    model.append((f"id{number}", size, uncertainty))
                while sum(size + ROW_BYTES for _, size, _ in model) > bound:
                    model.remove(min(model, key=lambda row: row[2]))  # min takes the first among equals
                    dropped += 1
            elif name == "ack":
                done = {f"id{number}" for number in arguments[0]}
                spool.ack(done)
                acked += sum(row[0] in done for row in model)
                model = [row for row in model if row[0] not in done]
            else:
                spool.close()
                spool = Spool(Path(directory, "s.db"), bound)
        with closing(spool):
            assert ids(spool) == [row[0] for row in model]
            assert spool.counters() == SpoolCounters(put, acked, dropped)
            assert spool.depth() == len(model)
            assert spool.bytes() == sum(size + ROW_BYTES for _, size, _ in model)


WRITER = """
import sys
from pathlib import Path
from runtime_edge.transport.spool.spool import Spool
spool = Spool(Path(sys.argv[1]), 64 << 20)
index = 0
while True:
    spool.put(f"id{index}", index, index.to_bytes(8, "little") * 1024, 0.5)
    if index % 3 == 0:
        spool.ack([f"id{index}"])
    print(index, flush=True)
    index += 1
"""


@pytest.mark.parametrize("puts", [1, 60, 700])
def test_every_put_that_returned_survives_sigkill(path: Path, puts: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(puts):
            process.stdout.readline()
        process.kill()
        last = puts - 1 + len(process.stdout.read().splitlines())

    with closing(Spool(path, 64 << 20)) as spool:
        frames = {frame.index: frame for frame in spool.oldest(100_000)}
        assert spool.recoveries == 0
        # One more put may have happened between the last line and the kill.
        acked = {index for index in range(last + 1) if index % 3 == 0}
        assert set(range(last + 1)) - acked <= set(frames) <= set(range(last + 2)) - acked
        assert all(frame.payload == index.to_bytes(8, "little") * 1024 for index, frame in frames.items())
        assert spool.depth() == len(frames)


def damage(path: Path, kind: str) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        if kind == "text":
            file.truncate(0)
            file.write(b"not a database, but long enough to be read as one " * 40)
        elif kind == "cut":
            file.truncate(size // 2)
        elif kind == "zeros":
            file.write(bytes(size))
        else:
            file.seek(4_096)
            file.write(b"\xa5" * (size - 8_192))


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, list[list[str]]]:
    """(database, write-ahead log, every state it has been in) of a spool whose power failed."""
    path = tmp_path_factory.mktemp("cut") / "spool.db"
    states: list[list[str]] = [[]]
    with closing(Spool(path, MIB)) as spool:
        for index in range(30):
            spool.put(f"d-b-{index}", index, bytes([index]) * 700, 0.5)
            states.append(ids(spool))
            if index % 3 == 2:
                spool.ack([f"d-b-{index - 2}"])
                states.append(ids(spool))
        return path.read_bytes(), path.with_name("spool.db-wal").read_bytes(), states


@settings(max_examples=60, deadline=None)
@given(kept=st.floats(0, 1), flipped=st.none() | st.tuples(st.floats(0, 0.999), st.integers(1, 255)))
def test_whatever_a_power_cut_leaves_of_the_log_is_a_state_the_spool_was_in(
    cut_off: tuple[bytes, bytes, list[list[str]]], kept: float, flipped: tuple[float, int] | None
) -> None:
    database, log, states = cut_off
    log = bytearray(log[: round(len(log) * kept)])
    if flipped is not None and log:
        log[int(len(log) * flipped[0])] ^= flipped[1]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "spool.db"
        path.write_bytes(database)
        path.with_name("spool.db-wal").write_bytes(log)
        with closing(Spool(path, MIB)) as spool:
            found = ids(spool)
            assert found in states
            assert spool.depth() == len(found)
            if kept == 1.0 and flipped is None:
                assert found == states[-1]
            spool.put("d-c-0", 0, b"after", 0.5)
            assert ids(spool) == [*found, "d-c-0"]
            assert spool.recoveries == 0


def test_a_log_that_is_whole_gives_everything_back(cut_off: tuple[bytes, bytes, list[list[str]]], path: Path) -> None:
    database, log, states = cut_off
    path.parent.mkdir()
    path.write_bytes(database)
    path.with_name("spool.db-wal").write_bytes(log)
    with closing(Spool(path, MIB)) as spool:
        assert ids(spool) == states[-1]


@pytest.mark.parametrize("kind", ["text", "cut", "zeros", "middle"])
def test_a_damaged_file_is_moved_aside_and_reported(path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Spool(path, MIB)) as spool:
        fill(spool, 50)
    damage(path, kind)

    with caplog.at_level(logging.ERROR), closing(Spool(path, MIB)) as spool:
        assert spool.recoveries == 1
        kept = ids(spool)
        assert spool.depth() == len(kept) == 50 - spool.damaged
        assert 0 < len(kept) < 50 if kind == "cut" else not kept
        spool.put("new", 1, b"x", 0.5)
        assert ids(spool) == [*kept, "new"]

    assert path.with_name("spool.db.corrupt").exists()
    assert str(path) in caplog.text
    with closing(Spool(path, MIB)) as spool:
        assert (spool.recoveries, ids(spool)) == (0, [*kept, "new"])


def test_damage_while_running_raises_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), closing(Spool(path, 8 * MIB)) as spool:
        fill(spool, 3_000)  # more than the page cache holds
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(path, "middle")
        spool.oldest(3_000)
        spool.put("new", 1, b"x", 0.5)

        assert spool.recoveries == 1
        assert ids(spool)[-1] == "new"
    assert "damaged" in caplog.text


def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE precious (x)")
    before = path.read_bytes()

    with pytest.raises(SpoolError, match="not a spool"):
        Spool(path, MIB)

    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.db"]


def test_a_full_disk_is_one_error_and_the_spool_goes_on(
    connections: list[sqlite3.Connection], spool: Spool, path: Path
) -> None:
    fill(spool, 10)
    connections[0].execute("PRAGMA max_page_count = 20")  # SQLite reports a full disk then, as the file system would
    with pytest.raises(SpoolError, match="full") as caught:
        fill(spool, 100)
    stored = ids(spool)

    assert isinstance(caught.value, SscError)
    assert str(path) in str(caught.value)
    assert 10 <= len(stored) < 100
    assert spool.depth() == len(stored)
    connections[0].execute("PRAGMA max_page_count = 100000")
    spool.put("after", 1, b"x", 1.0)
    assert ids(spool) == [*stored, "after"]


@pytest.mark.integration
def test_acknowledgements_a_disk_refuses_are_kept_and_written_later(
    spool: Spool, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(spool, 4)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody else can write: what a disk that fails looks like
        spool.ack(["d-b-0", "d-b-2"])
        assert ids(spool) == ["d-b-1", "d-b-3"], "what the server has is not sent again"
        assert [frame.message_id for frame in spool.oldest(1)] == ["d-b-1"]
        with pytest.raises(SpoolError, match="locked"):
            spool.put("x", 1, b"", 0.5)
        other.execute("ROLLBACK")
    assert "kept in memory" in caplog.text

    spool.put("new", 9, b"x", 0.5)

    assert spool.counters() == SpoolCounters(put=5, acked=2, dropped=0)
    with closing(sqlite3.connect(path)) as other:
        rows = other.execute("SELECT message_id FROM frames ORDER BY place").fetchall()
    assert [row[0] for row in rows] == ["d-b-1", "d-b-3", "new"]


def test_a_path_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "spool.db", tmp_path):
        with pytest.raises(SpoolError, match="disk refuses") as caught:
            Spool(path, MIB)
        assert "\n" not in str(caught.value)


def test_a_closed_spool_says_so(path: Path) -> None:
    spool = Spool(path, MIB)
    spool.close()

    with pytest.raises(SpoolError, match="closed"):
        spool.put("a", 1, b"", 0.5)


def test_a_payload_of_a_wrong_type_leaves_no_transaction_behind(spool: Spool) -> None:
    with pytest.raises(SscError):
        spool.put("bad", 1, [1, 2, 3], 0.5)  # type: ignore[arg-type]

    spool.put("good", 2, b"x", 0.5)
    assert ids(spool) == ["good"]


def test_one_thread_puts_while_another_acknowledges(spool: Spool) -> None:
    def put_all() -> None:
        for index in range(300):
            spool.put(f"id{index}", index, bytes(500), 0.5)

    thread = threading.Thread(target=put_all)
    thread.start()
    seen: list[int] = []
    while len(seen) < 300:
        frames = spool.oldest(8)
        seen.extend(frame.index for frame in frames)
        spool.ack(frame.message_id for frame in frames)
    thread.join()

    assert seen == list(range(300))
    assert spool.counters() == SpoolCounters(put=300, acked=300, dropped=0)


@pytest.mark.integration
@pytest.mark.parametrize("size", [300, 8_000])
def test_the_file_stays_near_its_bound(path: Path, size: int) -> None:
    with closing(Spool(path, 2 * MIB)) as spool:
        for index in range(4 * MIB // size):
            spool.put(f"some-device-0123456789-boot-{index}", index, bytes(size), index % 7 / 7)
        used = sum(file.stat().st_size for file in path.parent.iterdir())

        assert spool.bytes() <= 2 * MIB
        assert used < 1.5 * 2 * MIB + 8 * MIB


def test_power_safe_waits_for_the_disk(connections: list[sqlite3.Connection], path: Path) -> None:
    with closing(Spool(path, MIB, power_safe=True)):
        assert connections[-1].execute("PRAGMA synchronous").fetchone()[0] == 2
    with closing(Spool(path, MIB)):
        assert connections[-1].execute("PRAGMA synchronous").fetchone()[0] == 1
        assert connections[-1].execute("PRAGMA journal_mode").fetchone()[0] == "wal"
