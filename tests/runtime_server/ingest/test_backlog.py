"""What one pass takes: the oldest group, whole passes first when there is no hurry, fewer frames of a slow suffix."""

from types import SimpleNamespace

import pytest

from runtime_server.ingest.backlog import LARGEST, PASS_S, SMALLEST, WORTHWHILE, Backlog
from runtime_server.ingest.batches import FrameBatch

LONG_AGO = -1.0
SOON = 1e9


def arrival(at, generation=1, cut=1, size=10, sequence=1, model=0):
    header = SimpleNamespace(generation=generation, cut=cut, model=model)
    return SimpleNamespace(header=header, arrived=at, payload=bytes(size), sequence=sequence)


@pytest.fixture
def backlog():
    return Backlog()


def test_frames_of_one_generation_and_cut_go_together_in_order(backlog):
    for number in range(6):
        backlog.add(arrival(float(number), generation=1 + number % 2))
    batches = [backlog.next_batch(SOON), backlog.next_batch(SOON)]
    assert [(batch.generation, [a.arrived for a in batch.arrivals]) for batch in batches] == [
        (1, [0.0, 2.0, 4.0]),
        (2, [1.0, 3.0, 5.0]),
    ]
    assert backlog.next_batch(SOON) is None
    assert len(backlog) == 0


def test_frames_of_an_adapted_device_go_alone(backlog):
    for number in range(6):
        backlog.add(arrival(float(number), model=7 * (number % 2)))
    batches = [backlog.next_batch(SOON).arrivals for _ in range(2)]
    assert [[frame.header.model for frame in frames] for frames in batches] == [[0, 0, 0], [7, 7, 7]]


def test_a_full_pass_need_not_wait_and_the_others_wait_their_time(backlog):
    backlog.add(arrival(0.0, cut=2))
    for number in range(LARGEST + 3):
        backlog.add(arrival(5.0 + number, cut=1))
    assert len(backlog.next_batch(LONG_AGO).arrivals) == LARGEST
    assert backlog.next_batch(LONG_AGO) is None
    assert backlog.next_batch(0.0).cut == 2, "a rare cut does not starve"
    assert backlog.next_batch(0.0) is None
    assert len(backlog) == 3


def test_what_is_worth_a_pass_need_not_wait_either(backlog):
    worthwhile = int(WORTHWHILE * LARGEST)
    for number in range(worthwhile):
        assert backlog.next_batch(LONG_AGO) is None
        backlog.add(arrival(float(number)))
    assert len(backlog.next_batch(LONG_AGO).arrivals) == worthwhile


def test_what_is_over_goes_with_the_next_pass_in_order(backlog):
    for number in range(43):
        backlog.add(arrival(float(number)))
    batches = [backlog.next_batch(SOON).arrivals for _ in range(3)]
    assert [len(batch) for batch in batches] == [32, 8, 3]
    assert [frame.arrived for batch in batches for frame in batch] == list(range(43))


def test_a_suspect_goes_alone(backlog):
    backlog.add(arrival(0.0, sequence=7), suspect=True)
    backlog.add(arrival(1.0, sequence=8))
    backlog.add(arrival(2.0, sequence=9), suspect=True)
    taken = [backlog.next_batch(SOON) for _ in range(3)]
    assert [([a.sequence for a in batch.arrivals], batch.suspect) for batch in taken] == [
        ([7], True),
        ([8], False),
        ([9], True),
    ]


def test_a_slow_suffix_takes_few_frames_at_once_and_a_fast_one_many(backlog):
    def learn(seconds_per_frame):
        for _ in range(20):
            backlog.record_duration(FrameBatch(1, 1, [arrival(0.0)] * 4), 4 * seconds_per_frame)

    for _ in range(3 * LARGEST):
        backlog.add(arrival(0.0))
    learn(PASS_S / 12)
    assert len(backlog.next_batch(SOON).arrivals) == 12
    learn(10 * PASS_S)
    assert len(backlog.next_batch(SOON).arrivals) == SMALLEST
    learn(1e-6)
    assert len(backlog.next_batch(SOON).arrivals) == LARGEST


def test_it_is_crowded_by_number_and_by_bytes(backlog):
    for _ in range(8):
        backlog.add(arrival(0.0, size=8 << 20))
    assert backlog.crowded
    backlog.next_batch(SOON)
    assert not backlog.crowded
    for _ in range(256):
        backlog.add(arrival(0.0))
    assert backlog.crowded
