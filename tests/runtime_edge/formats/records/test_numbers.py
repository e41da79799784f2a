"""What is older than something accepted is refused, over restarts, whatever happens to the file."""

import json

import pytest

from runtime_edge.errors import OldRecord
from runtime_edge.formats import minisign
from runtime_edge.formats.records.envelope import open_record, seal
from runtime_edge.formats.records.numbers import RecordNumbers

KEY, OTHER = minisign.SecretKey(b"\2" * 8, bytes(32)), minisign.SecretKey(b"\1" * 8, b"\1" * 32)


def record(number, body=b"{}", key="_all.rpi4", kind="table"):
    if number == 0:
        signature = minisign.sign(body, KEY, "any")
        data = json.dumps({kind: body.decode(), "signature": signature}).encode()
    else:
        data = seal(kind, key, number, body, KEY)
    return open_record(data, kind, key, KEY.public, "x")


@pytest.fixture
def state(tmp_path):
    return tmp_path / "numbers.json"


def accept(numbers, *records):
    for each in records:
        numbers.accept(each, KEY.public, "x")


def refused(numbers, each):
    with pytest.raises(OldRecord, match=r"^x: number: ") as caught:
        numbers.accept(each, KEY.public, "x")
    return str(caught.value)


@pytest.mark.parametrize("restart", [False, True])
def test_an_older_number_is_refused_and_the_same_again_is_not(state, restart):
    numbers = RecordNumbers(state)
    accept(numbers, record(5), record(7))
    if restart:
        numbers = RecordNumbers(state)
    assert "5 is older than 7, which was accepted" in refused(numbers, record(5))
    accept(numbers, record(7))
    assert "7 was accepted with other contents" in refused(numbers, record(7, b"[]"))
    assert numbers.highest("table _all.rpi4", KEY.public) == 7
    accept(numbers, record(8, b"[]"))
    assert "7 is older than 8" in refused(numbers, record(7))


def test_every_kind_and_key_has_numbers_of_its_own(state):
    accept(RecordNumbers(state), record(9), record(2, key="pi-1.rpi4"), record(1, kind="head"))
    numbers = RecordNumbers(state)
    for name, number in (("table _all.rpi4", 9), ("table pi-1.rpi4", 2), ("head _all.rpi4", 1), ("table x", 0)):
        assert numbers.highest(name, KEY.public) == number


def test_several_share_a_file(state):
    tables, heads = RecordNumbers(state), RecordNumbers(state)
    accept(tables, record(3))
    accept(heads, record(4, kind="head"))
    accept(tables, record(5))
    assert RecordNumbers(state).highest("head _all.rpi4", KEY.public) == 4
    assert RecordNumbers(state).highest("table _all.rpi4", KEY.public) == 5


def test_records_without_a_number_are_taken_until_there_is_one(state):
    numbers = RecordNumbers(state)
    accept(numbers, record(0), record(0, b"[]"), record(0))
    assert not state.exists()
    accept(numbers, record(1))
    refused(numbers, record(0))
    refused(RecordNumbers(state), record(0))
    accept(numbers, record(0, kind="head"))


def test_another_key_starts_anew_and_without_unnumbered_records(state):
    accept(RecordNumbers(state), record(5))
    numbers = RecordNumbers(state)
    numbers.accept(record(2), OTHER.public, "x")
    assert numbers.highest("table _all.rpi4", OTHER.public) == 2
    with pytest.raises(OldRecord):
        numbers.accept(record(0, kind="head"), OTHER.public, "x")
    with pytest.raises(OldRecord):
        RecordNumbers(state).accept(record(1), OTHER.public, "x")


@pytest.mark.parametrize("damage", ["flip", "empty", "garbage", "cut", "gone"])
def test_a_damaged_file_is_told_once_and_what_is_in_use_still_counts(state, damage):
    accept(RecordNumbers(state), record(5), record(6, kind="head"))
    honest = state.read_bytes()
    state.write_bytes({"flip": honest.replace(b":5,", b":3,"), "empty": b"", "garbage": b"[]"}.get(damage, honest[:-9]))
    if damage == "gone":
        state.unlink()
    told = []
    numbers = RecordNumbers(state, told.append)
    numbers.in_use(record(5), KEY.public)
    refused(numbers, record(4))
    refused(numbers, record(0, kind="head"))
    accept(numbers, record(5), record(6))
    (problem,) = told
    assert str(problem).startswith(f"{state}: ")
    assert "can be recognised only for those in use" in str(problem)
    again = RecordNumbers(state, told.append)
    refused(again, record(5))
    refused(again, record(0, kind="head"))
    assert len(told) == 1


def test_a_file_that_never_was_is_not_missed_by_a_record_without_a_number(state):
    told = []
    RecordNumbers(state, told.append).in_use(record(0), KEY.public)
    assert told == []
    assert not state.exists()


def test_what_is_in_use_never_lowers_a_number(state):
    numbers = RecordNumbers(state)
    accept(numbers, record(5))
    numbers.in_use(record(4), KEY.public)
    assert numbers.highest("table _all.rpi4", KEY.public) == 5


def test_what_cannot_be_written_holds_until_a_restart(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    numbers = RecordNumbers(tmp_path / "file" / "numbers.json")
    accept(numbers, record(5))
    refused(numbers, record(4))
    assert numbers.highest("table _all.rpi4", KEY.public) == 5
