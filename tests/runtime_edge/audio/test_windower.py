"""Windows against direct slicing."""

from __future__ import annotations

import datetime as dt
import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.audio import AudioBlock, Counters, Windower
from runtime_edge.audio.audio_block import Recording
from runtime_edge.errors import UsageError

RATE = 1_000  # so that a sample is a millisecond
NS = 1_000_000


def blocks(samples: np.ndarray, sizes: list[int], start: int = 0, gap: int = 0) -> list[AudioBlock]:
    """Cut `samples` into blocks of the given sizes, round and round."""
    found, position = [], 0
    for size in itertools.cycle(sizes):
        piece = samples[position : position + size]
        if not piece.size:
            return found
        begin = start + position
        found.append(AudioBlock(piece, begin * NS, (begin + piece.size) * NS, gap if position == 0 else 0))
        position += piece.size
    return found


def ramp(count: int) -> np.ndarray:
    return (np.arange(1, count + 1) / 65_536).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 900),
    window=st.integers(1, 120),
    hop=st.integers(1, 200),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8),
)
def test_any_cutting_into_blocks_gives_the_slices(length: int, window: int, hop: int, sizes: list[int]) -> None:
    samples = ramp(length)
    counters = Counters()

    found = [
        (w.index, w.capture_time_ns, w.samples.copy())
        for w in Windower(window, hop, counters=counters).windows(blocks(samples, sizes))
    ]

    if length < window:
        padded = np.concatenate([samples, np.zeros(window - length, np.float32)])
        expected = [(0, length * NS, padded)]
    else:
        starts = range(0, length - window + 1, hop)
        expected = [(i, (s + window) * NS, samples[s : s + window]) for i, s in enumerate(starts)]
    assert len(found) == len(expected) == counters.windows
    for (index, time_ns, got), (want_index, want_time_ns, want) in zip(found, expected, strict=True):
        assert (index, time_ns) == (want_index, want_time_ns)
        np.testing.assert_array_equal(got, want)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    window=st.integers(1, 120),
    hop=st.integers(1, 200),
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=5),
)
def test_windows_end_where_a_recording_ends(lengths: list[int], window: int, hop: int, sizes: list[int]) -> None:
    samples, stream, begins = ramp(sum(lengths)), [], [0, *itertools.accumulate(lengths)]
    for number, (begin, end) in enumerate(itertools.pairwise(begins)):
        first, *others = blocks(samples[begin:end], sizes, start=begin)
        stream += [msgspec.structs.replace(first, begins=Recording(f"{number}.wav")), *others]

    found = [(w.file, w.file_offset, w.index, w.samples.copy()) for w in Windower(window, hop).windows(stream)]

    expected = []
    for number, (begin, end) in enumerate(itertools.pairwise(begins)):
        own = samples[begin:end]
        padded = np.pad(own, (0, max(0, window - own.size)))
        expected += [
            (f"{number}.wav", start, padded[start : start + window])
            for start in range(0, padded.size - window + 1, hop)
        ]
    assert [(file, offset) for file, offset, _, _ in found] == [(file, offset) for file, offset, _ in expected]
    for (_, _, _, got), (_, _, want) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    for (file, offset, index, _), (next_file, next_offset, next_index, _) in itertools.pairwise(found):
        if file != next_file:
            assert (next_index - index) * hop >= window, "windows of neighbouring indices share samples"
        else:
            assert (next_index - index) * hop == next_offset - offset


def test_a_recording_that_is_played_again_begins_again_and_gated_windows_do_not_hide_that() -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 250).astype(np.float32)
    again = [
        AudioBlock(samples, 0, NS, begins=Recording("a.wav"))
        for samples in (np.zeros(250, np.float32), np.zeros(250, np.float32), sound)
    ]

    found = [(w.index, w.file, w.file_offset) for w in Windower(100, 100, gate_db=-60).windows(again)]

    assert found == [(5, "a.wav", 0), (6, "a.wav", 100)]


def test_a_window_knows_when_its_recording_began() -> None:
    began = dt.datetime(2026, 5, 1, 4, 30, tzinfo=dt.timezone.utc)
    first = AudioBlock(ramp(250), 0, NS, begins=Recording("a.wav", began))

    assert {w.file_began for w in Windower(100, 50).windows([first])} == {began}


def test_audio_that_is_from_no_file_has_no_place_in_one() -> None:
    assert {(w.file, w.file_offset) for w in Windower(100, 50).windows(blocks(ramp(500), [77]))} == {(None, 0)}


def test_windows_are_views_of_one_buffer() -> None:
    windower = Windower(100, 50)
    owners = {id(window.samples.base) for window in windower.windows(blocks(ramp(5_000), [77]))}

    assert len(owners) == 1


def test_the_gate_counts_quiet_windows_and_leaves_their_indices_unused() -> None:
    samples = np.repeat([0.1, 1e-4, 0.1], 300).astype(np.float32)
    samples[::2] *= -1
    windower = Windower(100, 100, gate_db=-60)

    indices = [window.index for window in windower.windows(blocks(samples, [37]))]

    assert indices == [0, 1, 2, 6, 7, 8]
    assert (windower.counters.windows, windower.counters.gated) == (6, 3)


def test_the_gate_stands_at_the_level_it_names() -> None:
    sine = (0.1 * np.sqrt(2) * np.sin(2 * np.pi * np.arange(1_000) / 10)).astype(np.float32)  # RMS -20 dB

    assert len(list(Windower(1_000, 1_000, gate_db=-20.1).windows(blocks(sine, [1_000])))) == 1
    assert len(list(Windower(1_000, 1_000, gate_db=-19.9).windows(blocks(sine, [1_000])))) == 0


@pytest.mark.parametrize("offset", [0.05, -0.5])
def test_a_constant_offset_is_no_level(offset: float) -> None:
    quiet = np.random.default_rng(0).normal(0, 1e-4, 1_000).astype(np.float32)  # RMS -80 dB

    assert not list(Windower(1_000, 1_000, gate_db=-70).windows(blocks(quiet + np.float32(offset), [1_000])))
    assert list(Windower(1_000, 1_000, gate_db=-90).windows(blocks(quiet + np.float32(offset), [1_000])))


def test_digital_silence_passes_when_there_is_no_gate() -> None:
    assert len(list(Windower(10, 10).windows(blocks(np.zeros(100, np.float32), [10])))) == 10


@settings(max_examples=100, deadline=None)
@given(first=st.integers(1, 400), gap=st.integers(1, 500), second=st.integers(1, 400), hop=st.integers(1, 150))
def test_no_window_spans_a_gap_and_indices_follow_the_time_line(first: int, gap: int, second: int, hop: int) -> None:
    samples = ramp(first + gap + second)
    stream = blocks(samples[:first], [60]) + blocks(samples[first + gap :], [60], start=first + gap, gap=gap)

    found = [(w.index, w.capture_time_ns // NS, w.samples.copy()) for w in Windower(100, hop).windows(stream)]

    assert [index for index, _, _ in found] == sorted({index for index, _, _ in found})
    for index, end, got in found:
        if end >= 100 and len(samples) >= 100 and got[-1]:
            np.testing.assert_array_equal(got, samples[end - 100 : end])
        assert end <= first or end >= first + gap + min(100, second)
        # The start of the window is within one hop of where its index says.
        assert index * hop - hop < max(end - 100, 0) <= index * hop or end <= first
    expected_after = max(0, (second - 100) // hop + 1) if second >= 100 else 0
    assert sum(end > first + gap for _, end, got in found if got[-1]) == expected_after


@pytest.mark.parametrize(
    ("window", "hop", "gate_db"), [(0, 10, None), (10, 0, None), (-5, 5, None), (10, 10, float("nan"))]
)
def test_impossible_lengths_and_gates_are_refused(window: int, hop: int, gate_db: float | None) -> None:
    with pytest.raises(UsageError):
        Windower(window, hop, gate_db)
