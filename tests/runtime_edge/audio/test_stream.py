"""Cleaning, mixing, time stamps and pacing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from runtime_edge.audio.audio_block import AudioBlock, Clock, Counters, Recording
from runtime_edge.audio.stream import Mixer, SourceAudio, to_blocks, to_mono
from runtime_edge.errors import UsageError


class Time:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.set_by_ns = 0
        self.slept = 0.0

    @property
    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.set_by_ns + round((self.seconds - 100.0) * 1e9)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.slept += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.wall_ns, lambda: self.seconds, self.sleep)


def raws(count: int, size: int, rate_hz: int) -> list[SourceAudio]:
    frames = np.full((size, 1), 0.25, np.float32)
    return [SourceAudio(frames, rate_hz, index == 0) for index in range(count)]


def blocks_of(source: list[SourceAudio], time: Time, pace: float | None = None) -> list[AudioBlock]:
    return list(to_blocks(source, 16_000, Counters(), lambda: time.wall_ns, time.clock(), pace))


def test_bad_values_become_zero_or_are_clipped_and_both_are_counted() -> None:
    counters = Counters()
    frames = np.array([[0.5], [np.nan], [np.inf], [-np.inf], [3.0], [-1.5], [1.0]], np.float32)

    mono = to_mono(frames, counters)

    np.testing.assert_array_equal(mono, np.array([0.5, 0, 0, 0, 1, -1, 1], np.float32))
    assert (counters.bad_samples, counters.clipped_samples) == (3, 2)
    assert np.isnan(frames[1, 0]), "the caller's array was changed"


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_averaged(channels: int) -> None:
    frames = np.random.default_rng(channels).uniform(-1, 1, (500, channels)).astype(np.float32)

    mono = to_mono(frames, Counters())

    np.testing.assert_allclose(mono, frames.astype(np.float64).mean(axis=1), atol=1e-6)
    assert mono.dtype == np.float32
    assert mono.flags.c_contiguous


def test_one_channel_can_be_chosen() -> None:
    frames = np.random.default_rng(0).uniform(-1, 1, (500, 3)).astype(np.float32)

    for number in (1, 2, 3):
        np.testing.assert_array_equal(Mixer(str(number)).mix(frames, 16_000), frames[:, number - 1])


def test_the_loudest_channel_is_the_one_with_sound_whatever_the_offset_of_the_others() -> None:
    rng = np.random.default_rng(0)
    quiet, loud = rng.normal(0, 0.01, (2, 16_000))
    mixer = Mixer("loudest")

    first = mixer.mix(np.stack([quiet + 0.5, loud * 10], axis=1).astype(np.float32), 16_000)
    then = mixer.mix(np.stack([loud * 11, loud * 10], axis=1).astype(np.float32), 16_000)
    mixer.restart()
    other = mixer.mix(np.stack([loud * 10, quiet], axis=1).astype(np.float32), 16_000)

    np.testing.assert_allclose(first, loud * 10, atol=1e-6)
    np.testing.assert_allclose(then, loud * 10, atol=1e-6, err_msg="it does not hop between two that are as loud")
    np.testing.assert_allclose(other, loud * 10, atol=1e-6)


@pytest.mark.parametrize("channel", ["0", "left", "", "-1", "1.5"])
def test_what_is_no_channel_is_refused(channel: str) -> None:
    with pytest.raises(UsageError, match="1 is the first"):
        Mixer(channel)


def test_one_bad_channel_does_not_spoil_the_others() -> None:
    frames = np.array([[0.5, np.nan]], np.float32)

    assert to_mono(frames, Counters())[0] == 0.25


def test_blocks_join_in_time() -> None:
    time = Time()
    anchor = time.wall_ns

    blocks = blocks_of(raws(10, 1_600, 16_000), time)

    assert blocks[0].start_time_ns == anchor
    assert [block.end_time_ns - anchor for block in blocks] == [100_000_000 * n for n in range(1, 11)]
    assert all(after.start_time_ns == before.end_time_ns for before, after in pairwise(blocks))


@pytest.mark.parametrize("pace", [None, 1.0])
def test_times_follow_a_clock_that_is_set_and_this_is_said_once(
    pace: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock is set right before it is looked at, which is done once a second."""
    time, counters, ends = Time(), Counters(), []
    anchor, year_ns = time.wall_ns, 31_536_000_000_000_000
    for block in to_blocks(raws(40, 1_600, 16_000), 16_000, counters, lambda: time.wall_ns, time.clock(), pace):
        ends.append(block.end_time_ns - anchor)
        if pace is None:
            time.seconds = 100.0 + 0.1 * len(ends)
        time.set_by_ns += {9: year_ns, 19: -3_600_000_000_000, 29: 1_000_000_000}.get(len(ends) - 1, 0)

    steps = [0] * 10 + [year_ns] * 10 + [year_ns - 3_600_000_000_000] * 20
    assert ends == [100_000_000 * n + step for n, step in zip(range(1, 41), steps, strict=True)]
    assert counters.clock_steps == 2, "a second may be a correction of the clock's rate"
    assert [record.message for record in caplog.records if record.name.endswith("stream")] == [
        "the clock was changed by +31536000.0 s: the times of audio follow it from now on"
    ]


def test_time_stamps_follow_the_sound_and_not_the_filter_s_delay() -> None:
    # A click at 0.5 s of a 48 kHz recording must carry the time of 0.5 s after the anchor.
    time = Time()
    samples = np.zeros((48_000, 1), np.float32)
    samples[24_000] = 0.9
    source = [SourceAudio(samples[start : start + 4_800], 48_000, start == 0) for start in range(0, 48_000, 4_800)]

    blocks = blocks_of(source, time)

    for block in blocks:
        if np.abs(block.samples).max() > 0.1:
            clicked = block.start_time_ns + int(np.argmax(np.abs(block.samples))) * 62_500
            assert clicked - time.wall_ns == pytest.approx(500_000_000, abs=62_500)
            break
    else:
        pytest.fail("the click is lost")
    assert blocks[-1].end_time_ns - time.wall_ns == 1_000_000_000


@pytest.mark.parametrize("speed", [1.0, 8.0])
def test_pacing_sleeps_as_long_as_the_audio_lasts(speed: float) -> None:
    time = Time()
    seen = []
    start = time.seconds
    for block in to_blocks(raws(20, 1_600, 16_000), 16_000, Counters(), lambda: 0, time.clock(), speed):
        seen.append((time.seconds - start, block.end_time_ns * 1e-9))

    assert time.slept == pytest.approx(2.0 / speed)
    for arrived, captured in seen:
        assert arrived == pytest.approx(captured), "a paced block comes when it was captured"


def test_a_late_reader_is_caught_up_without_losing_audio() -> None:
    time = Time()
    counters = Counters()
    for block in to_blocks(raws(20, 1_600, 16_000), 16_000, counters, lambda: 0, time.clock(), 1.0):
        time.seconds += 1.0 if block.start_time_ns == 0 else 0.0

    assert counters.samples == 32_000
    assert time.slept == pytest.approx(0.1 + 0.9), "0.1 s before the first block; 1 s of the rest was made up"


def test_how_long_a_block_has_waited_for_a_late_reader_can_be_told() -> None:
    time, waited = Time(), []
    for block in to_blocks(raws(5, 1_600, 16_000), 16_000, Counters(), lambda: 0, time.clock(), 1.0):
        waited.append(time.seconds - block.ready_at)
        time.seconds += 0.25 if len(waited) == 1 else 0.0

    assert waited == pytest.approx([0.0, 0.15, 0.05, 0.0, 0.0])


def test_recordings_of_different_rates_form_one_stream() -> None:
    counters = Counters()
    source = [*raws(10, 4_410, 44_100), *raws(10, 800, 8_000), *raws(10, 1_600, 16_000)]

    blocks = list(to_blocks(source, 16_000, counters, lambda: 0, Time().clock(), None))

    assert counters.samples == 48_000
    assert counters.blocks == len(blocks)
    assert blocks[-1].end_time_ns == 3_000_000_000


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_each_file_begins_at_the_same_sample_as_its_audio(rate_hz: int) -> None:
    # The first file is quiet, in the second a click stands at 0.25 s.
    click = np.zeros((rate_hz // 2, 1), np.float32)
    click[rate_hz // 4] = 0.9
    source = [
        SourceAudio(np.zeros((22_050, 1), np.float32), 44_100, True, recording=Recording("a.wav")),
        *(
            SourceAudio(click[at : at + 999], rate_hz, at == 0, recording=Recording("b.wav"))
            for at in range(0, len(click), 999)
        ),
    ]

    blocks = blocks_of(source, Time())

    begins, position = {}, 0
    for block in blocks:
        if block.begins is not None:
            begins[block.begins.name] = position
        position += block.samples.size
    heard = np.concatenate([block.samples for block in blocks])
    assert begins == {"a.wav": 0, "b.wav": 8_000}
    assert (np.abs(heard).argmax() - begins["b.wav"]) / 16_000 == pytest.approx(0.25, abs=1 / 16_000)


def test_a_file_shorter_than_the_filter_begins_with_what_is_left_in_it() -> None:
    short = [
        SourceAudio(np.full((frames, 1), 0.25, np.float32), 44_100, True, recording=Recording(name))
        for name, frames in (("a.wav", 90), ("b.wav", 1), ("c.wav", 90))
    ]

    begun = [block.begins.name for block in blocks_of(short, Time()) if block.begins is not None]

    assert [name for name in begun if name in ("a.wav", "c.wav")] == ["a.wav", "c.wav"]
    assert len(begun) == len(set(begun)), "each block is the only one of its file"


def test_a_gap_moves_the_time_line_and_is_counted_at_the_new_rate() -> None:
    counters = Counters()
    frames = np.zeros((4_800, 1), np.float32)
    source = [SourceAudio(frames, 48_000, True), SourceAudio(frames, 48_000, True, gap_frames=9_600)]

    blocks = list(to_blocks(source, 16_000, counters, lambda: 0, Time().clock(), None))

    assert counters.dropped_samples == 3_200
    assert [block.gap_samples for block in blocks if block.gap_samples] == [3_200]
    assert blocks[-1].end_time_ns == 400_000_000
