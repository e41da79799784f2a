"""What was taken: against a plain set, and what is given up for being small."""

from hypothesis import given
from hypothesis import strategies as st

from runtime_server.training.trained_frames import TrainedFrames


@given(st.lists(st.integers(1, 60)))
def test_while_it_remembers_all_it_is_a_set(places):
    taken = TrainedFrames()
    for place in places:
        taken.add(place)
    again = TrainedFrames.of(taken.floor, taken.last())
    for known in (taken, again):
        assert [place for place in range(1, 62) if place in known] == sorted(set(places))


@given(st.permutations(range(1, 40)), st.integers(1, 10))
def test_nothing_taken_is_ever_forgotten(places, remembered):
    taken = TrainedFrames(remembered)
    for count, place in enumerate(places, 1):
        taken.add(place)
        assert all(earlier in taken for earlier in places[:count])
    assert len(taken.last()) <= remembered


def test_in_the_order_of_the_stream_nothing_is_taken_that_was_not():
    taken = TrainedFrames(3)
    for place in (2, 4, 6, 8, 10):
        taken.add(place)
    assert taken.floor == 4
    assert [place for place in range(1, 12) if place in taken] == [1, 2, 3, 4, 6, 8, 10]


def test_no_place_is_none():
    taken = TrainedFrames()
    taken.add(0)
    assert taken.last() == []
