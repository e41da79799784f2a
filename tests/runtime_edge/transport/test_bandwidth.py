"""The estimator of the uplink on synthetic links."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.transport.bandwidth import BandwidthEstimator


class Link:
    """A link with a rate, a round trip and uniform jitter; sending on it takes virtual time."""

    def __init__(self, mbits: float, rtt_ms: float, jitter_ms: float, seed: int = 0) -> None:
        self.mbits, self.rtt_ms, self.jitter_ms = mbits, rtt_ms, jitter_ms
        self.seconds = 0.0
        self._random = np.random.default_rng(seed)

    def now(self) -> float:
        return self.seconds

    def send(self, estimator: BandwidthEstimator, size: int) -> None:
        jitter = self._random.uniform(-self.jitter_ms, self.jitter_ms)
        taken = (self.rtt_ms + jitter) / 1e3 + size * 8 / (self.mbits * 1e6)
        self.seconds += max(0.5, taken)
        estimator.observe(size, taken)

    def mixed(self) -> int:
        return int(self._random.choice([256, 300, 800, 2_000, 8_192, 16_000, 32_000]))


@pytest.mark.parametrize("initial", [0.2, 2.0, 50.0])
def test_it_converges_on_a_jittery_link_with_frames_of_all_sizes(initial: float) -> None:
    rates, trips, within = [], [], []
    for seed in range(20):
        link = Link(mbits=2.0, rtt_ms=40.0, jitter_ms=15.0, seed=seed)
        estimator = BandwidthEstimator(initial_mbits=initial, initial_rtt_ms=150.0, now=link.now)
        for _ in range(60):
            link.send(estimator, link.mixed())
        settled, trip = [], []
        for _ in range(200):
            link.send(estimator, link.mixed())
            settled.append(estimator.uplink_mbits)
            trip.append(estimator.rtt_ms)
        rates.append(np.mean(settled))
        trips.append(np.mean(trip))
        within.append(np.mean(np.abs(np.array(settled) / 2.0 - 1) < 0.15))

    np.testing.assert_allclose(rates, 2.0, rtol=0.15)
    np.testing.assert_allclose(trips, 40.0, rtol=0.15)
    assert np.mean(within) > 0.9, "single readings as well, most of the time"


@pytest.mark.parametrize("mbits", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("rtt_ms", [50.0, 200.0])
def test_without_jitter_it_is_right_over_the_range_of_the_traces(mbits: float, rtt_ms: float) -> None:
    link = Link(mbits, rtt_ms, jitter_ms=0.0)
    estimator = BandwidthEstimator(now=link.now)
    for _ in range(100):
        link.send(estimator, 100)
        link.send(estimator, 20_000)

    assert estimator.rtt_ms == pytest.approx(rtt_ms, rel=1e-3)
    assert estimator.uplink_mbits == pytest.approx(mbits, rel=0.02)
    assert estimator.loss == 0.0


def test_a_fall_from_8_to_half_a_mbit_is_seen_within_four_large_frames() -> None:
    link = Link(mbits=8.0, rtt_ms=40.0, jitter_ms=5.0)
    estimator = BandwidthEstimator(now=link.now)
    for _ in range(40):
        link.send(estimator, 300)
        link.send(estimator, 16_000)
    before = estimator.uplink_mbits

    link.mbits = 0.5
    after = []
    for _ in range(8):
        link.send(estimator, 16_000)
        after.append(estimator.uplink_mbits)

    assert before == pytest.approx(8.0, rel=0.3)
    assert after[0] < 2.0
    assert after[3] < 0.8
    assert after[7] == pytest.approx(0.5, rel=0.15)


def test_a_rise_is_believed_within_fifteen_large_frames() -> None:
    link = Link(mbits=0.5, rtt_ms=40.0, jitter_ms=0.0)
    estimator = BandwidthEstimator(now=link.now)
    for _ in range(20):
        link.send(estimator, 300)
        link.send(estimator, 16_000)
    link.mbits = 8.0
    for _ in range(15):
        link.send(estimator, 300)
        link.send(estimator, 16_000)

    assert estimator.uplink_mbits == pytest.approx(8.0, rel=0.2)


def test_a_round_trip_that_shrinks_is_followed_although_no_small_frame_is_sent() -> None:
    link = Link(mbits=2.0, rtt_ms=400.0, jitter_ms=0.0)
    estimator = BandwidthEstimator(now=link.now)
    for _ in range(20):
        link.send(estimator, 100)
    link.rtt_ms = 20.0
    for _ in range(300):
        link.send(estimator, 25_000)  # 100 ms of transfer, less than the round trip it remembers
    assert 1.0 < estimator.uplink_mbits < 4.0, "right within a factor of two on guesswork"
    link.send(estimator, 100)
    for _ in range(20):
        link.send(estimator, 100)
        link.send(estimator, 25_000)

    assert estimator.uplink_mbits == pytest.approx(2.0, rel=0.1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-10, 10**9),
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(-1e9, 1e9),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_no_times_sizes_or_clock_jumps_make_it_fail(seen: list[tuple[int, float, float, bool]]) -> None:
    clock = [0.0]
    estimator = BandwidthEstimator(now=lambda: clock[0])
    for size, seconds, now, lost in seen:
        clock[0] = now
        if lost:
            estimator.timeout(seconds)
        else:
            estimator.observe(size, seconds)
        assert 0.001 <= estimator.uplink_mbits <= 10_000.0
        assert 0.0 <= estimator.rtt_ms <= 60_000.0
        assert 0.0 <= estimator.loss <= 1.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 3_600.0])
def test_a_time_that_cannot_be_teaches_nothing(seconds: float) -> None:
    link = Link(mbits=2.0, rtt_ms=40.0, jitter_ms=0.0)
    estimator = BandwidthEstimator(now=link.now)
    for _ in range(10):
        link.send(estimator, 100)
        link.send(estimator, 10_000)
    before = (estimator.uplink_mbits, estimator.rtt_ms, estimator.loss)

    estimator.observe(10_000, seconds)
    estimator.observe(100, seconds)
    estimator.timeout(seconds)

    assert (estimator.uplink_mbits, estimator.rtt_ms, estimator.loss) == before


def test_one_impossibly_fast_frame_does_no_lasting_harm() -> None:
    link = Link(mbits=2.0, rtt_ms=40.0, jitter_ms=0.0)
    estimator = BandwidthEstimator(now=link.now)
    for _ in range(20):
        link.send(estimator, 100)
        link.send(estimator, 16_000)

    estimator.observe(16_000, 1e-6)
    assert estimator.uplink_mbits < 3.0
    for _ in range(10):
        link.send(estimator, 16_000)

    assert estimator.uplink_mbits == pytest.approx(2.0, rel=0.1)


def test_without_any_small_frame_the_round_trip_is_guessed_and_not_ignored() -> None:
    link = Link(mbits=2.0, rtt_ms=40.0, jitter_ms=10.0)
    estimator = BandwidthEstimator(initial_rtt_ms=500.0, now=link.now)
    for _ in range(50):
        link.send(estimator, 16_000)

    assert estimator.uplink_mbits == pytest.approx(2.0, rel=0.5)


def test_timeouts_count_as_loss_and_pull_the_estimate_down() -> None:
    link = Link(mbits=4.0, rtt_ms=40.0, jitter_ms=0.0)
    estimator = BandwidthEstimator(now=link.now)
    for _ in range(30):
        link.send(estimator, 100)
        link.send(estimator, 16_000)
    for _ in range(20):
        estimator.timeout(2.0)

    assert estimator.loss == pytest.approx(20 / 64)
    assert estimator.uplink_mbits < 0.01
    for _ in range(64):
        link.send(estimator, 16_000)
    assert estimator.loss == 0.0
    assert estimator.uplink_mbits == pytest.approx(4.0, rel=0.1)


def test_before_any_frame_it_answers_what_it_was_told() -> None:
    estimator = BandwidthEstimator(initial_mbits=3.5, initial_rtt_ms=70.0)

    assert (estimator.uplink_mbits, estimator.rtt_ms, estimator.loss) == (
        3.5,
        70.0,
        0,
    )


def test_an_estimate_stays_as_it_is_while_nobody_measures() -> None:
    time_s = [0.0]
    estimator = BandwidthEstimator(now=lambda: time_s[0])
    for _ in range(20):
        time_s[0] += 1.0
        estimator.observe(500, 0.02)
        estimator.observe(16_000, 1.02)
    known = estimator.uplink_mbits
    assert known == pytest.approx(0.128, rel=0.1)
    learnt_at = time_s[0]
    time_s[0] += 3600.0
    assert estimator.uplink_mbits == known
    assert estimator.measured_at == learnt_at


def test_after_nothing_but_timeouts_one_bandwidth_probe_tells_that_the_link_is_back() -> None:
    clock = [0.0]
    estimator = BandwidthEstimator(now=lambda: clock[0])
    for _ in range(40):
        estimator.timeout(10.0)
        clock[0] += 10.0
    estimator.sending(100_000)
    clock[0] += 120.0
    assert estimator.uplink_mbits < 0.01
    assert estimator.needs_confirmation(4096, 0.016, 0)
    estimator.observe_pair(16_384, 0.04, 0.066)
    assert estimator.uplink_mbits == pytest.approx(2.0, rel=0.05)


def test_a_server_that_is_late_says_nothing_of_the_link() -> None:
    link = Link(mbits=4.0, rtt_ms=40.0, jitter_ms=0.0)
    estimator = BandwidthEstimator(now=link.now)
    for _ in range(30):
        link.send(estimator, 100)
        link.send(estimator, 16_000)
    before = estimator.uplink_mbits
    for _ in range(20):
        estimator.timeout(2.0, stored=True)

    assert estimator.uplink_mbits == before
    assert estimator.loss == pytest.approx(20 / 64)


def test_nothing_is_learnt_from_answers_that_wait_behind_a_download() -> None:
    link, since_download_s = Link(mbits=4.0, rtt_ms=40.0, jitter_ms=0.0), [float("inf")]
    estimator = BandwidthEstimator(now=link.now, shared=lambda: since_download_s[0])
    for _ in range(30):
        link.send(estimator, 100)
        link.send(estimator, 16_000)
    before = estimator.uplink_mbits, estimator.rtt_ms
    since_download_s[0] = 0.2  # it has ended, but was there when the frame was sent
    for _ in range(10):
        estimator.sending(16_000)
        link.seconds += 1.0
        assert estimator.uplink_mbits == before[0], "nor from one that is overdue"
        estimator.observe(16_000, 1.0)
        estimator.observe(100, 0.7)
        estimator.observe_pair(4_096, 0.7, 0.5)
    assert (estimator.uplink_mbits, estimator.rtt_ms) == before
    since_download_s[0] = 60.0
    for _ in range(10):
        link.seconds += 1.0
        estimator.observe(16_000, 1.0)
    assert estimator.uplink_mbits < 0.2
