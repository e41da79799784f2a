"""Filler is sent only where it can change a choice, and never more than its share of the link."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_edge.policy.splitter import RTT_JITTER_MS
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.bandwidth_probe import LARGEST_BYTES, SHARE, SMALLEST_BYTES, FillerAllowance, filler_bytes


def test_nothing_is_sent_when_no_faster_link_would_change_the_cut() -> None:
    assert filler_bytes(1.0, 0.0, 0.5, 300) == 0


def test_filler_is_a_share_of_the_uplink_within_bounds() -> None:
    assert filler_bytes(1.0, 900.0, 0.5, 300) == int(SHARE * 125_000 * 0.5)
    assert filler_bytes(0.05, 900.0, 0.5, 300) == SMALLEST_BYTES
    assert filler_bytes(500.0, 900.0, 0.5, 300) == LARGEST_BYTES


def test_a_frame_that_tells_as_much_needs_none() -> None:
    assert filler_bytes(1.0, 900.0, 0.5, 3200) == 0
    assert filler_bytes(1.0, 900.0, 0.5, 3000) > 0
    assert filler_bytes(0.2, 900.0, 0.5, 1000) > 0  # more than the filler, but its time is mostly the round trip


def test_filler_is_sent_as_often_as_it_is_worth() -> None:
    allowance = FillerAllowance()
    sent = [allowance.allows(4096, 1024.0) for _ in range(40)]
    assert sent[:4] == [True] * 4, "looking begins at once"
    assert sent[8:].count(True) == 8, "then every fourth window"
    assert not allowance.allows(0, 1e9), "a frame that tells enough needs no filler"
    assert all(allowance.allows(LARGEST_BYTES, 1e9) for _ in range(9)), "where much is gained, after every frame"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def settled(mbits: float, clock: Clock | None = None) -> BandwidthEstimator:
    """An estimator that has seen a frame of 16 kB and a ping of 50 ms every half second; the next are due."""
    clock = clock or Clock()
    estimator = BandwidthEstimator(now=clock)
    for _ in range(40):
        estimator.observe(100, 0.05 + 0.0008 / mbits)
        estimator.observe(16_000, 0.05 + 0.128 / mbits)
        clock.now += 0.5
    assert estimator.uplink_mbits == pytest.approx(mbits, rel=0.02)
    return estimator


def test_one_pair_tells_that_a_thin_link_has_recovered() -> None:
    estimator = settled(0.2)
    estimator.observe_pair(625, 0.05, 0.0025)  # it should have taken 25 ms
    assert estimator.uplink_mbits == pytest.approx(2.0, rel=0.05)


def test_a_rise_is_a_pair_that_came_sooner_than_jitter_explains() -> None:
    estimator = settled(0.2)
    assert [estimator.is_rise(625, transfer_s) for transfer_s in (0.0, 0.005, 0.02, 0.025, 0.2)] == [
        True,
        True,
        *[False] * 3,
    ]
    assert not estimator.is_rise(0, 0.0)
    assert not BandwidthEstimator().is_rise(625, 0.0), "nothing is known yet"


def test_pairs_within_jitter_hardly_move_the_estimate() -> None:
    estimator = settled(0.2)
    for transfer_s in (0.029, 0.021, 0.03, 0.02, 0.026):
        estimator.observe_pair(625, 0.05, transfer_s)
        assert estimator.uplink_mbits == pytest.approx(0.2, rel=0.15)


def test_a_ping_that_waited_behind_a_frame_is_not_blamed_for_it() -> None:
    estimator = settled(0.2)
    for _ in range(30):
        estimator.observe_pair(625, 0.05 + 0.02, 0.025, bytes_before=500)
    assert estimator.rtt_ms == pytest.approx(50, rel=0.01)
    estimator.observe_pair(625, 0.05, 0.025, bytes_before=50_000)  # so many cannot have been in front of it
    assert estimator.rtt_ms == pytest.approx(50, rel=0.01)


def test_a_small_frame_is_not_blamed_for_its_own_transfer() -> None:
    estimator = settled(0.2)
    for _ in range(40):
        estimator.observe(1000, 0.05 + 0.04)
    assert estimator.rtt_ms == pytest.approx(50, rel=0.05)
    for _ in range(40):
        estimator.observe(1000, 0.03)  # the link is faster than the estimate by far: half of it is taken for the trip
    assert 14 < estimator.rtt_ms < 30


def test_a_rise_is_clear_on_a_long_way_when_packets_would_have_had_to_wait_long_for_each_other() -> None:
    def clear(rtt_s: float, transfer_s: float, filler: int = 2500) -> bool:
        estimator = settled(0.2)  # 2500 bytes take 100 ms
        for _ in range(40):
            estimator.observe_round_trip(rtt_s)
        return estimator.is_clear_rise(filler, transfer_s)

    assert clear(0.15, 0.0)
    assert clear(0.15, 0.045)
    assert not clear(0.15, 0.055), "less than twice as fast"
    assert not clear(0.15, 0.0, 625), "25 ms is how long packets wait"
    assert not clear(0.1, 0.0), "there is time to ask again"
    assert not BandwidthEstimator().is_clear_rise(2500, 0.0)


def test_the_round_trip_wavers_less_than_its_dead_band_and_follows_a_step() -> None:
    estimator, jitter = settled(1.0), np.random.default_rng(0)
    seen = []
    for _ in range(2000):
        estimator.observe_round_trip(0.05 + jitter.uniform(-0.015, 0.015))
        seen.append(estimator.rtt_ms)
    assert np.quantile(np.abs(np.array(seen) - 50), 0.98) < RTT_JITTER_MS
    for _ in range(12):
        estimator.observe_round_trip(0.15)
    assert estimator.rtt_ms > 130


def test_a_ping_teaches_the_round_trip_alone() -> None:
    estimator = settled(1.0)
    before = estimator.uplink_mbits
    for _ in range(20):
        estimator.observe_round_trip(0.2)
    assert estimator.rtt_ms == pytest.approx(200, rel=0.03)
    assert estimator.uplink_mbits == pytest.approx(before, rel=0.1)
    for seconds in (0.0, -1.0, float("nan"), 99.0):
        estimator.observe_round_trip(seconds)
        estimator.observe_pair(500, seconds, 0.1)
    estimator.observe_pair(500, 0.05, -0.1)
    assert estimator.rtt_ms == pytest.approx(200, rel=0.03)


def test_a_ping_goes_in_front_of_a_frame_that_takes_its_time_and_seldom_of_one_that_does_not() -> None:
    clock = Clock()
    estimator = BandwidthEstimator(now=lambda: clock.now)
    assert estimator.wants_ping(16_000), "nothing is known yet"
    assert not estimator.wants_ping(500), "its acknowledgement is a round trip itself"
    estimator = settled(100.0, clock)
    assert not estimator.wants_ping(16_000)
    assert estimator.wants_ping(500_000)
    assert not estimator.wants_ping(500_000, by_answer=True), "the answer tells less of the link"
    clock.now += 5.1
    assert not estimator.wants_ping(16_000), "how round trips waver is known"
    clock.now += 15.0
    assert estimator.wants_ping(16_000), "the round trip may have changed"
    estimator.observe_round_trip(0.05)
    assert not estimator.wants_ping(16_000)
    estimator.observe(16_000, 0.05 + 0.128 / 2.0)
    assert estimator.wants_ping(16_000), "the link has become slow"


def test_one_frame_tells_that_the_link_has_become_slow_and_a_jittery_one_does_not() -> None:
    estimator = settled(8.0)
    estimator.observe(16_000, 0.05 + 0.016 + 0.02)
    assert estimator.uplink_mbits > 5.0
    estimator = settled(8.0)
    estimator.observe(16_000, 0.05 + 0.128 / 0.5)
    assert estimator.uplink_mbits == pytest.approx(0.5, rel=0.25)


def test_a_frame_that_is_overdue_lowers_the_estimate_before_it_arrives() -> None:
    clock = Clock()
    estimator = settled(8.0, clock)
    estimator.sending(16_000)
    assert estimator.uplink_mbits == pytest.approx(8.0, rel=0.02)
    clock.now += 0.3
    assert estimator.uplink_mbits == pytest.approx(0.128 / 0.25, rel=0.02)
    clock.now += 0.3
    assert estimator.uplink_mbits == pytest.approx(0.128 / 0.55, rel=0.02)
    estimator.observe(16_000, 0.05 + 0.128 / 8.0)  # it came after all
    assert estimator.uplink_mbits == pytest.approx(8.0, rel=0.02)
    estimator.sending(16_000)
    clock.now += 120.0
    assert estimator.uplink_mbits >= 8.0  # of a frame that was lost no word may ever come
