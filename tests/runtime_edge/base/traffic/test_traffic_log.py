"""What has passed, and what passes in an hour and a month."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.base.traffic.traffic_log import DAY_S, HOUR_S, MONTH_S, Rate, Span, Traffic, TrafficLog

EACH = Traffic(300, 600)
NOON = 1_800_000_000.0 // DAY_S * DAY_S + DAY_S / 2


def steady(seconds, every_s=300.0, each=EACH, began=NOON):
    """A log of traffic that is the same all the time, and when it ends."""
    log = TrafficLog()
    log.add(began, Traffic())
    steps = round(seconds / every_s)
    for step in range(1, steps + 1):
        log.add(began + step * every_s, each)
    return log, began + steps * every_s


@pytest.mark.parametrize("seconds", [HOUR_S / 2, 5 * HOUR_S, 3 * DAY_S, 29 * DAY_S])
def test_steady_traffic_has_its_rate_however_long_it_has_been_watched(seconds):
    log, now = steady(seconds)
    an_hour, a_month = log.an_hour(now), log.a_month(now)
    assert an_hour.traffic == pytest.approx((3600, 7200, 0), rel=0.1)
    assert a_month.traffic == pytest.approx((720 * 3600, 720 * 7200, 0), rel=0.1)
    assert an_hour.seconds == pytest.approx(min(seconds, HOUR_S), abs=1.01 * HOUR_S)
    assert a_month.seconds == seconds


def test_an_update_of_the_last_minute_is_not_taken_for_one_every_minute():
    log = TrafficLog([Span(NOON, Traffic(6_000, 4_001_000, 4_280_000))])
    assert log.an_hour(NOON + 60).traffic == Traffic(360_000, 4_001_000, 4_001_000)
    long_ago = TrafficLog([Span(NOON - HOUR_S, Traffic(6_000, 12_000, 9_000))])
    assert long_ago.an_hour(NOON + HOUR_S / 2).traffic == Traffic(4_000, 8_000, 6_000)


def test_an_hour_forgets_what_a_month_remembers():
    log, now = steady(2 * DAY_S)
    for _ in range(36):
        now += 300
        log.add(now, Traffic())
    assert log.an_hour(now).traffic == Traffic()
    assert log.a_month(now).traffic.up > 0


def test_of_a_month_ago_nothing_is_left_and_little_is_kept():
    log, now = steady(90 * DAY_S, every_s=HOUR_S / 2)
    assert len(log.spans) <= 82
    assert log.spans[0].start > now - MONTH_S
    assert log.total.up == pytest.approx(300 * 2 * 24 * 30, rel=0.05)


@given(st.lists(st.tuples(st.floats(-1e7, 1e7), st.integers(0, 1 << 40)), max_size=60))
def test_nothing_is_lost_or_invented_when_the_clock_jumps(steps):
    """But what is older than a month by the clock of that moment."""
    log, now, youngest = TrafficLog(), NOON, 0
    for jump, count in steps:
        before = log.total.up
        now = max(0.0, now + jump)
        log.add(now, Traffic(up=count))
        youngest = count
        assert youngest <= log.total.up <= before + count
        assert all(span.start <= now for span in log.spans)
        assert [span.start for span in log.spans] == sorted(span.start for span in log.spans)
        for rate in (log.an_hour(now), log.a_month(now)):
            assert rate.seconds >= 0
            assert rate.traffic.up >= 0


def test_what_an_earlier_run_has_left_goes_on():
    log, now = steady(DAY_S)
    again = TrafficLog(log.spans)
    assert again.a_month(now) == log.a_month(now)
    assert TrafficLog([Span(now, Traffic(1, 2, 3))]).an_hour(now).seconds == 0


def test_differences_are_never_below_zero():
    assert Traffic(5, 5, 5).since(Traffic(1, 9, 5)) == Traffic(4, 0, 0)


def test_a_rate_says_from_what_it_is_reckoned():
    rate = Rate(Traffic(1_234_567, 2000, 0), 5400.0)
    assert str(rate) == "1.2 MB up, 2.0 kB down, 0 B of it updates (from 90 min)"
    assert str(Rate(Traffic(), 0.0)) == "nothing is known yet"
