"""A stated rate against the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from runtime_edge.audio import Counters
from runtime_edge.audio.rate_check import RateCheck

STATED = 16_000


def measured(pieces: Iterable[tuple[float, int]]) -> int:
    """What is counted when so many samples come at such times."""
    counters = Counters()
    check = RateCheck(STATED, counters)
    for now, count in pieces:
        check.heard(count, now)
    check.ended()
    return counters.measured_rate_hz


def steady(rate_hz: float, seconds: float, every_s: float = 0.1, late: Callable[[float], float] = lambda now: now):
    times = [every_s * number for number in range(1, round(seconds / every_s))]
    return [(late(now), round(rate_hz * every_s)) for now in times]


@pytest.mark.parametrize("rate_hz", [8_000, 14_700, 17_415, 22_050, 48_000])
def test_another_rate_is_measured_and_said_once(rate_hz: int, caplog: pytest.LogCaptureFixture) -> None:
    assert measured(steady(rate_hz, 60.0)) == pytest.approx(rate_hz, rel=0.05)
    assert len(caplog.records) == 1
    assert "not the 16,000 stated" in caplog.text


def test_three_times_the_rate_is_noticed_within_eight_seconds() -> None:
    assert measured(steady(48_000, 8.0)) == pytest.approx(48_000, rel=0.05)


@pytest.mark.parametrize("rate_hz", [15_520, 15_870, 16_140, 16_480])
def test_a_rate_that_is_a_little_off_is_noticed_within_some_minutes(rate_hz: int) -> None:
    assert measured(steady(rate_hz, 370.0)) == pytest.approx(rate_hz, rel=0.002)


@pytest.mark.parametrize("rate_hz", [15_950, 16_000, 16_050])
@pytest.mark.parametrize("every_s", [0.02, 0.1, 1.5])
def test_the_right_rate_is_silent_whatever_the_size_of_the_pieces(rate_hz: int, every_s: float) -> None:
    assert measured(steady(rate_hz, 600.0, every_s)) == 0


@pytest.mark.parametrize("held_s", [1.5, 4.0, 15.0])
def test_what_was_held_back_and_comes_at_once_is_no_rate(held_s: float) -> None:
    assert measured(steady(STATED, 90.0, late=lambda now: max(now, held_s + now / 50))) == 0
    assert measured([(0.01, 1_600), *steady(STATED, 90.0, late=lambda now: max(now, held_s + now / 50))]) == 0


def test_a_stall_is_a_gap_and_no_rate() -> None:
    stalled = [(now + (30.0 if now > 20 else 0.0), count) for now, count in steady(STATED, 60.0)]

    assert measured(stalled) == 0


def test_a_recording_read_as_if_it_were_live_is_noticed() -> None:
    assert measured(steady(STATED, 60.0, late=lambda now: now / 1000)) > 1_000_000
