"""Exactly once: the ledger against a plain set, and against death at any moment."""

import json
import shutil
import threading
from collections import Counter

import pytest
from damaged_bytes import flip
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats import subjects
from runtime_server.state.device_windows import MAX_BOOTS, MAX_RUNS
from runtime_server.state.ledger import DurableLedger, Ledger, PartitionedLedger

NOTES = st.lists(
    st.tuples(
        st.sampled_from(["a", "pi-1"]), st.sampled_from(["b0", "b1"]), st.integers(0, 30) | st.integers(0, 1 << 40)
    )
)


@given(NOTES)
def test_it_remembers_what_a_set_remembers(notes):
    ledger, seen = Ledger(), set()
    for note in notes:
        assert ledger.add(*note) == (note not in seen)
        seen.add(note)
    devices = {device for device, _, _ in seen}
    assert ledger.counts() == {device: sum(note[0] == device for note in seen) for device in devices}
    asked = [(device, boot, index) for device in ("a", "pi-1") for boot in ("b0", "b1") for index in range(-1, 32)]
    assert [note for note in asked if ledger.holds(*note)] == [note for note in asked if note in seen]


@given(NOTES, NOTES)
def test_bytes_bring_it_back(before, after):
    ledger = Ledger()
    for note in before:
        ledger.add(*note)
    copy = Ledger.from_bytes(ledger.to_bytes())
    assert copy.to_bytes() == ledger.to_bytes()
    assert [copy.add(*note) for note in after] == [ledger.add(*note) for note in after]


def test_a_dense_run_takes_no_room():
    ledger = Ledger()
    for index in range(10_000):
        ledger.add("pi-1", "boot", (7919 * index) % 10_000)
    assert len(ledger.to_bytes()) < 50


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a.b": [[1]]}', b'{"a.b": [[1, 2, 3]]}', b'{"a.b": "x"}', b"\xff"])
def test_other_bytes_are_refused(data):
    with pytest.raises(FormatError, match="ledger: "):
        Ledger.from_bytes(data)


@given(NOTES, st.sets(st.integers(0, 50)))
def test_nothing_noted_is_forgotten_by_a_process_that_dies(tmp_path_factory, notes, saves):
    path = tmp_path_factory.mktemp("ledger") / "ledger.json"
    ledger, plain = DurableLedger(path), Ledger()
    for place, note in enumerate(notes):
        ledger.add(*note)
        plain.add(*note)
        if place in saves:
            ledger.save()
    reborn = DurableLedger(path)  # the first one was never closed
    assert reborn.counts() == plain.counts()
    assert not any(reborn.add(*note) for note in notes)
    for opened in (ledger, reborn):
        opened.close()


def test_a_journal_line_that_a_power_cut_tore_is_left_out(tmp_path):
    ledger = DurableLedger(tmp_path / "ledger.json")
    ledger.add("pi-1", "b0", 1)
    ledger.add("pi-1", "b0", 2)
    with (tmp_path / "ledger.json.journal").open("ab") as journal:
        journal.write(b"pi-1.b0.3\n\0\0\0\n.5\npi-1.b0.\npi")
    reborn = DurableLedger(tmp_path / "ledger.json")
    assert reborn.counts() == {"pi-1": 2}
    assert (ledger.damaged_lines, reborn.damaged_lines) == (0, 5)
    for opened in (ledger, reborn):
        opened.close()


def test_lines_of_journals_that_were_damaged_are_counted_over_all_partitions(tmp_path):
    devices = {subjects.partition(name): name for name in ("pi-1", "pi-2", "pi-3")}
    assert len(devices) > 1
    ledger = PartitionedLedger(tmp_path / "killed")
    ledger.add_all([(name, "b0", index) for name in devices.values() for index in range(2)])
    ledger.save()
    ledger.add_all([(name, "b0", index) for name in devices.values() for index in range(2, 5)])
    copy = shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    ledger.close()
    first, second = (copy / f"{partition}.json.journal" for partition in list(devices)[:2])
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join([*lines[:-2], lines[-2].replace(b"~", b"!"), lines[-1][:-3]]))
    second.write_bytes(b"")  # its first line is gone, and with it how many there were
    damaged = PartitionedLedger(copy)
    assert damaged.damaged_lines == 3
    assert sum(damaged.counts().values()) == 5 * len(devices) - 2 - 3
    damaged.close()
    again = PartitionedLedger(copy)
    assert again.damaged_lines == 0
    again.close()


def test_saving_empties_the_journal_and_closing_saves(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = DurableLedger(path)
    for index in range(5):
        ledger.add("pi-1", "b0", index)
    ledger.save()
    assert path.with_name("ledger.json.journal").read_bytes() == b"streamsplit.journal/2\n"
    ledger.add("pi-1", "b0", 5)
    ledger.close()
    assert Ledger.from_bytes(path.read_bytes()).counts() == {"pi-1": 6}


def test_a_damaged_file_names_itself_and_says_what_to_do(tmp_path):
    (tmp_path / "ledger.json").write_text('{"pi-1.b0": [')
    with pytest.raises(FormatError, match=r"ledger\.json: .*remove it"):
        DurableLedger(tmp_path / "ledger.json")


def test_threads_do_not_get_in_each_others_way(tmp_path):
    ledger, new = DurableLedger(tmp_path / "ledger.json"), []

    def note():
        new.append(sum(ledger.add("pi-1", "b0", index) for index in range(2000)))

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ledger.save()
        ledger.counts()
    assert sum(new) == ledger.counts()["pi-1"] == 2000
    ledger.close()


@pytest.mark.integration
@given(NOTES, st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_another_number_of_processes_goes_on_where_the_former_left_off(tmp_path_factory, notes, worlds):
    directory, seen = tmp_path_factory.mktemp("ledger"), set()
    for world in worlds:
        ranks = [
            PartitionedLedger(directory, range(rank, subjects.PARTITIONS, world))
            for rank in range(min(world, subjects.PARTITIONS))
        ]
        for note in notes[: len(seen) + 3]:
            rank = ranks[subjects.partition(note[0]) % world]
            assert rank.holds(*note) == (note in seen)
            assert rank.add(*note) == (note not in seen)
            seen.add(note)
        counts = {device: count for rank in ranks for device, count in rank.counts().items()}
        assert sum(counts.values()) == len(seen)
        for rank in ranks:
            rank.close()


def test_two_processes_never_have_the_same_partition(tmp_path):
    first = PartitionedLedger(tmp_path, [0, 2])
    other = PartitionedLedger(tmp_path, [1])
    with pytest.raises(UsageError, match="another server runs on this state directory"):
        PartitionedLedger(tmp_path, [3, 2], lock_patience_s=0.1)
    third = PartitionedLedger(tmp_path, [3])  # what the refused one had taken is free again
    first.close()
    PartitionedLedger(tmp_path, [0, 2]).close()
    for opened in (other, third):
        opened.close()


def test_a_snapshot_stays_as_it_is(tmp_path):
    ledger = PartitionedLedger(tmp_path)
    for device in ("pi-1", "pi-2", "pi-3"):
        ledger.add(device, "b0", 3)
    snapshot = ledger.snapshot()
    ledger.add("pi-1", "b0", 4)
    assert snapshot.counts() == {"pi-1": 1, "pi-2": 1, "pi-3": 1}
    assert not snapshot.holds("pi-1", "b0", 4)
    ledger.close()


@pytest.mark.integration
def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(tmp_path, caplog):
    """In the ledger, its checksum or its journal."""
    whole = tmp_path / "whole"
    whole.mkdir()
    ledger = DurableLedger(whole / "0.json")
    ledger.add_all([("pi-1", "b0", index) for index in (0, 1, 2, 7)])
    ledger.save()
    ledger.add_all([("pi-1", "b0", 3), ("pi-2", "b1", 12)])
    expected, outcomes = ledger.counts(), Counter()
    for name in sorted(path.name for path in whole.iterdir()):
        for bit in range(8 * (whole / name).stat().st_size):
            copy = tmp_path / f"{name}-{bit}"
            shutil.copytree(whole, copy)
            flip(copy / name, bit)
            caplog.clear()
            try:
                found = DurableLedger(copy / "0.json")
            except FormatError:
                outcomes["refused"] += 1
            else:
                outcomes["said" if caplog.text else "nothing"] += 1
                assert caplog.text or found.counts() == expected, (name, bit)
                assert found.counts()["pi-1"] >= 4, "what was saved is there"
                found.close()
            shutil.rmtree(copy)
    ledger.close()
    assert set(outcomes) == {"refused", "said"}, outcomes


def test_a_ledger_that_is_gone_is_missed_and_a_journal_is_said(tmp_path, caplog):
    path = tmp_path / "0.json"
    ledger = DurableLedger(path)
    ledger.add("pi-1", "b0", 0)
    ledger.close()
    (tmp_path / "0.json.journal").unlink()
    DurableLedger(path).close()
    assert "0.json.journal: damaged" in caplog.text
    path.unlink()
    with pytest.raises(FormatError, match=r"0\.json: is missing"):
        DurableLedger(path)


def test_a_ledger_of_an_earlier_version_is_covered_from_then_on(tmp_path, caplog):
    path = tmp_path / "0.json"
    path.write_bytes(b'{"pi-1.b0":[[0,3]]}')
    (tmp_path / "0.json.journal").write_bytes(b"pi-1.b0.4\n")
    ledger = DurableLedger(path)
    ledger.add("pi-1", "b0", 5)
    again = DurableLedger(path)  # the first one was never closed
    assert again.counts() == ledger.counts() == {"pi-1": 6}
    assert not caplog.text
    for made in (again, ledger):
        made.close()
    flip(path, 20)
    with pytest.raises(FormatError, match=r"0\.json: is damaged"):
        DurableLedger(path)


def test_sparse_windows_of_one_device_fill_a_bounded_file_and_take_nothing_from_another(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = DurableLedger(path)
    neighbours = [("pi-1", "b0", index) for index in range(0, 200, 2)]
    assert all(ledger.add_all(neighbours))
    sparse = [("pi-2", "b0", (1 << 40) - 1 - 3 * index) for index in range(2 * MAX_RUNS)]
    assert all(ledger.add_all(sparse))
    assert ledger.counts() == {"pi-1": 100, "pi-2": 2 * MAX_RUNS}
    ledger.save()
    assert path.stat().st_size < 40 * (MAX_RUNS + 200)
    reborn = DurableLedger(path)
    assert reborn.counts() == ledger.counts()
    assert not any(reborn.add_all(neighbours))
    for opened in (ledger, reborn):
        opened.close()


def test_a_device_with_thousands_of_boots_pushes_out_its_own_alone():
    ledger = Ledger()
    ledger.add("pi-1", "b0", 7)
    for number in range(30_000):
        assert ledger.add("pi-2", f"b{number}", 7)
    assert not ledger.add("pi-1", "b0", 7)
    assert not ledger.add("pi-2", "b29999", 7), "its latest boots are known"
    assert not ledger.holds("pi-2", "b0", 7)
    assert ledger.counts() == {"pi-1": 1, "pi-2": 30_000}
    assert len(ledger.to_bytes()) < 40 * (MAX_BOOTS + 2)


def test_what_is_late_is_still_known_within_a_devices_bounds():
    ledger = Ledger()
    every_second = [("pi-1", "b0", 2 * index) for index in range(MAX_RUNS)]
    assert all(ledger.add_all(every_second))
    assert not any(ledger.add_all(every_second))


@pytest.mark.integration
def test_many_devices_with_sparse_windows_are_bounded_together(tmp_path):
    ledger = Ledger()
    honest = [("pi-0", "b0", 2 * index) for index in range(500)]
    ledger.add_all(honest)
    for number in range(1, 80):
        ledger.add_all([(f"pi-{number}", "b0", 2 * index) for index in range(MAX_RUNS)])
    assert len(ledger.to_bytes()) < 8 << 20
    assert not any(ledger.add_all(honest))
    assert ledger.counts()["pi-5"] == MAX_RUNS


def test_a_file_beyond_the_bounds_of_an_earlier_version_is_read_and_shrinks():
    runs = [[3 * index, 3 * index] for index in range(3 * MAX_RUNS)]
    ledger = Ledger.from_bytes(json.dumps({"pi-2.b0": runs, "pi-1.b0": [[0, 5]]}).encode())
    assert ledger.counts() == {"pi-2": 3 * MAX_RUNS, "pi-1": 6}
    assert ledger.holds("pi-2", "b0", runs[-1][0])
    assert not ledger.holds("pi-2", "b0", 0)
    assert Ledger.from_bytes(ledger.to_bytes()).to_bytes() == ledger.to_bytes()
