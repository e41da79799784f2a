"""The uplink's rate and round trip, learnt from the frames that are sent (docs/method.md, section 6)."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from runtime_edge.policy.splitter import BANDWIDTH_SMOOTHING, SAMPLE_S

TELLING_BYTES = 1024
"""From this size on, a frame's own time says something about the uplink."""
_JITTER_S = 0.015
"""Jitter of one round trip (docs/method.md, section 6)."""
_PAIR_JITTER_S = 0.005
"""Jitter of the difference between two round trips in direct succession."""
_LONG_WAY_S, _LONGEST_WAIT_S = 0.12, 0.04
_CLEAR = 4.0
"""A time counts in full if it is this many times the jitter."""
_LEAST_WEIGHT = 0.2
"""Weight of a round trip as long as expected, as a share of `smoothing`; one off by twice the jitter has all of it."""
_UNEXPLAINED = 2.5
"""From this many times the jitter on, a difference from the expected time is no longer jitter."""
_UNEXPLAINED_PAIR = 3.0
"""The same for a difference between two times, both of which waver."""
_NEGLIGIBLE_S = _JITTER_S / 10
"""A transfer this short is lost in the jitter."""
_LITTLE_S = _JITTER_S / 4
"""A transfer this short says little."""
_MINUTE_SECONDS = 60.0
_MIN_MBITS, _MAX_MBITS = 0.001, 10_000.0
_LOSS_MEMORY = 64
_STALE_S = 5.0
_SELDOM_S = 20.0
"""Seconds between pings on a fast link whose round trips are well known: if it slows down, the frames show it."""
_BUNCHED = 2.0
"""From this many times the usual jitter on, answers come in bunches."""
_TRIPS = 32
"""How many round trips are used to measure how much they waver."""
_USUAL = 0.75
"""Share of the steps between successive round trips that are at most the jitter, if that is uniform."""
_LEAST_STEPS, _FEW_STEPS = 3, 8
"""With fewer steps than the second, the largest counts; with fewer than the first, none."""
_UNKNOWN_JITTER_S = 0.1


class BandwidthEstimator:
    """Uplink rate and round trip, learnt from the frames that are sent anyway.

    A frame's time is one round trip plus its bytes over the bandwidth. Frames below 1 KiB teach the round trip;
    larger ones teach the bandwidth: delivered bits over transfer time, each an exponential moving average with
    factor `smoothing` (docs/method.md, section 6). Averaging the two separately, rather than their ratio, keeps jitter
    from inflating the estimate and lets one slow frame count for the time it took. A frame weighs proportionally less
    if neither the time it took nor the expected time stands out from the jitter. One that misses the expected time by
    more than jitter explains means that the link has changed: it counts as a sample of each 100 ms since the last
    frame, as in the method, so that the estimate is correct after one or two frames.

    `observe_round_trip` learns from a ping sent before a frame (`wants_ping` says when that is worthwhile), and
    `observe_pair` from a bandwidth probe after it, which measures round trip and transfer separately. A frame with a
    ping before it is compared with that very ping: whatever delayed both on the way back is not the uplink's.

    How much round trips waver is measured, too. If answers come in bunches, the more a time wavers the less it says,
    and only what stands out from the wavering is a change. While a download shares the link (`shared`), answers queue
    behind it, and nothing is learnt about the uplink. Nor is anything assumed about a link that has not been measured
    for a while: the estimate stays, and whoever wants to know sends a bandwidth probe.

    Times come from a monotonic clock; a time that is not positive, or longer than a minute, teaches nothing. One
    thread may observe while another reads.

    Args:
        initial_mbits: uplink assumed before the first large frame, Mbit/s.
        initial_rtt_ms: round trip assumed before the first small frame, ms.
        smoothing: weight of the newest frame, in (0, 1].
        now: monotonic time, s.
        shared: seconds since a download last used the path of the answers; 0 while one does.
    """

    def __init__(
        self,
        initial_mbits: float = 2.0,
        initial_rtt_ms: float = 50.0,
        smoothing: float = BANDWIDTH_SMOOTHING,
        now: Callable[[], float] = time.monotonic,
        shared: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._smoothing = smoothing
        self._now, self._shared = now, shared
        self._initial_mbits = initial_mbits
        self._rtt_s = self._shown_rtt_s = initial_rtt_ms / 1e3
        self._rtt_learnt_at: float | None = None
        self._trips: deque[float] = deque(maxlen=_TRIPS)
        self._jitter_s = _UNKNOWN_JITTER_S
        self._own_trip_s: float | None = None
        """Round trip of the ping sent before the frame now under way."""
        self._bits: float | None = None
        self._transfer_s = 0.0
        self._samples = 0
        """How many samples told the rate rather than a change."""
        self._bandwidth_learnt_at = now()
        self._under_way: tuple[float, float] | None = None
        # (time, seconds), both rising: the front is the fastest frame of the last minute.
        self._fastest: deque[tuple[float, float]] = deque()
        self._outcomes: deque[bool] = deque(maxlen=_LOSS_MEMORY)
        self._lock = threading.Lock()

    def wants_ping(self, bytes_sent: int, by_answer: bool = False) -> bool:
        """Whether to ping before a frame, because its acknowledgement alone would not tell the round trip.

        A small frame's acknowledgement is a round trip itself. On a link so fast that a frame's transfer time is
        negligible, one ping in 5 s is enough, or one in 20 s once it is known how much round trips waver: if the link
        slows down, the frame's own time shows it. The same holds if the server's answer acknowledges the frame: that
        says less about the link, and the next frame that the broker acknowledges gets its ping.
        """
        with self._lock:
            if bytes_sent < TELLING_BYTES:
                return False
            stale_s = _STALE_S if len(self._trips) < _FEW_STEPS else _SELDOM_S
            if self._rtt_learnt_at is None or self._now() - self._rtt_learnt_at > stale_s:
                return True
            return not by_answer and not self._takes_at_most(_NEGLIGIBLE_S, bytes_sent)

    def sending(self, bytes_sent: int, server_s: float = 0.0) -> None:
        """Note that a frame was sent with no other in flight. Once it is overdue, it limits the estimate.

        If the server acknowledges it, about `server_s` of the time are the server's own.
        """
        with self._lock:
            self._under_way, self._own_trip_s = (self._now() + server_s, bytes_sent * 8.0), None

    def observe(self, bytes_sent: int, seconds: float) -> None:
        """Learn from a frame of `bytes_sent` whose acknowledgement came after `seconds`."""
        if bytes_sent < 0 or not 0.0 < seconds <= _MINUTE_SECONDS:
            return
        with self._lock:
            trip_s, self._under_way, self._own_trip_s = self._own_trip_s, None, None
            self._outcomes.append(False)
            shared = self._is_shared(seconds)
            if bytes_sent < TELLING_BYTES:
                # Less its own transfer, no part of the round trip: at most half, should the estimate be far too low.
                self._learn_rtt(max(seconds - self._expected_s(bytes_sent * 8.0), seconds / 2))
            elif not shared:
                transfer_s = self._transfer_of(seconds, trip_s)
                self._learn_bandwidth(bytes_sent * 8.0, transfer_s, self._jitter_s, trip_s is not None)
            while self._fastest and self._fastest[-1][1] >= seconds:
                self._fastest.pop()
            self._fastest.append((self._now(), seconds))

    def learns_little(self, bytes_sent: int) -> bool:
        """Whether a frame's time says little about the uplink: it is small, or its transfer is lost in the jitter."""
        with self._lock:
            return bytes_sent < TELLING_BYTES or self._takes_at_most(_LITTLE_S, bytes_sent)

    def dismiss(self) -> None:
        """Note that the frame under way has arrived, without learning from its time."""
        with self._lock:
            self._under_way, self._own_trip_s = None, None
            self._outcomes.append(False)

    def is_surprise(self, bytes_sent: int, seconds: float) -> bool:
        """Whether a frame's time differs from the estimate by more than jitter explains, so that the link must have
        changed.
        """
        with self._lock:
            trip_s = self._rtt_s if self._own_trip_s is None else self._own_trip_s
            missed_s = seconds - trip_s - self._expected_s(bytes_sent * 8.0)
            return self._bits is not None and missed_s > _UNEXPLAINED * self._jitter_s

    def observe_round_trip(self, seconds: float) -> None:
        """Learn from an empty round trip."""
        if 0.0 < seconds <= _MINUTE_SECONDS:
            with self._lock:
                self._learn_rtt(seconds)
                self._own_trip_s = seconds

    def observe_pair(self, bytes_between: int, rtt_s: float, transfer_s: float, bytes_before: int = 0) -> None:
        """Learn from two empty round trips with `bytes_between` sent between them: the first took `rtt_s`, and the
        second ended `transfer_s` after it. The first had `bytes_before` ahead of it, whose time is not counted.
        """
        if not 0.0 < rtt_s <= _MINUTE_SECONDS or not 0.0 <= transfer_s <= _MINUTE_SECONDS:
            return
        with self._lock:
            waited_s = transfer_s * bytes_before / max(bytes_between, 1)
            if waited_s < rtt_s:
                self._learn_rtt(rtt_s - waited_s)
            if not self._is_shared(rtt_s + transfer_s):
                jitter_s, bunched = self._pair_jitter_s, self._bunched
                # A transfer shorter than the jitter cannot be told from an even shorter one.
                least_s = 0.0 if bunched else _PAIR_JITTER_S / 2
                self._learn_bandwidth(bytes_between * 8.0, max(transfer_s, least_s), jitter_s, bunched)

    def is_rise(self, bytes_between: int, transfer_s: float) -> bool:
        """Whether a bandwidth probe shows a faster link than the estimate, by more than jitter explains."""
        return self._gained_s(bytes_between, transfer_s) > _UNEXPLAINED * self._pair_jitter_s

    def is_clear_rise(self, bytes_between: int, transfer_s: float) -> bool:
        """Whether it shows a link at least twice as fast, by more than packet bunching explains, while the round trip
        is too long for another bandwidth probe before the next window.
        """
        gained_s = self._gained_s(bytes_between, transfer_s)
        return self._rtt_s > _LONG_WAY_S and gained_s > max(_LONGEST_WAIT_S, transfer_s)

    def needs_confirmation(self, bytes_between: int, transfer_s: float, confirmations: int) -> bool:
        """Whether a bandwidth probe's result, after `confirmations`, needs another confirmation before it counts."""
        if confirmations and self.is_clear_rise(bytes_between, transfer_s):
            return False
        return self.is_rise(bytes_between, transfer_s)

    def timeout(self, seconds: float, stored: bool = False) -> None:
        """Learn that a frame was not answered in `seconds`: nothing was delivered unless the broker `stored` it."""
        if not 0.0 < seconds <= _MINUTE_SECONDS:
            return
        with self._lock:
            self._outcomes.append(True)
            if not stored:
                self._under_way = None
                if not self._is_shared(seconds):
                    self._learn_bandwidth(0.0, seconds, self._jitter_s)

    @property
    def uplink_mbits(self) -> float:
        """Uplink estimate, Mbit/s, in [0.001, 10 000]."""
        with self._lock:
            if self._bits is None:
                return self._initial_mbits
            known = max(_MIN_MBITS, self._bits / 1e6 / max(self._transfer_s, 1e-9))
            if self._under_way is not None:
                known = max(_MIN_MBITS, min(known, self._shown_mbits(known, *self._under_way)))
            return min(_MAX_MBITS, known)

    @property
    def measured_at(self) -> float:
        """When something was last learnt about the uplink, by `now`."""
        with self._lock:
            return self._bandwidth_learnt_at

    @property
    def rtt_ms(self) -> float:
        """Round trip, smoothed, ms."""
        with self._lock:
            return self._shown_rtt_s * 1e3

    @property
    def loss(self) -> float:
        """Share of timeouts among the last 64 frames, in [0, 1]."""
        with self._lock:
            return sum(self._outcomes) / len(self._outcomes) if self._outcomes else 0.0

    def _takes_at_most(self, seconds: float, bytes_sent: int) -> bool:
        return self._bits is not None and self._expected_s(bytes_sent * 8.0) <= seconds

    def _shown_mbits(self, hoped: float, since: float, bits: float) -> float:
        """The highest rate that the frame in flight still allows; infinite until it is overdue."""
        elapsed_s = self._now() - since
        if self._is_shared(elapsed_s):
            return math.inf
        transfer_s = elapsed_s - (self._own_trip_s or self._rtt_s)
        # A lost frame may never be acknowledged.
        overdue = _UNEXPLAINED * self._jitter_s < transfer_s - bits / 1e6 / hoped < _MINUTE_SECONDS
        return bits / 1e6 / transfer_s if overdue else math.inf

    def _is_shared(self, seconds: float) -> bool:
        """Whether there was a download in the last `seconds`."""
        return self._shared() <= seconds

    @property
    def _pair_jitter_s(self) -> float:
        """Jitter of the difference between two answers: smaller than that of one, unless bunches delay both at once."""
        return self._jitter_s if self._bunched else _PAIR_JITTER_S

    @property
    def _bunched(self) -> bool:
        return self._jitter_s > _BUNCHED * _JITTER_S

    def _gained_s(self, bytes_between: int, transfer_s: float) -> float:
        """Seconds that a bandwidth probe's second answer came earlier than estimated; 0 without an estimate."""
        with self._lock:
            if self._bits is None or not bytes_between:
                return 0.0
            return self._expected_s(bytes_between * 8.0) - max(transfer_s, _PAIR_JITTER_S / 2)

    def _expected_s(self, bits: float) -> float:
        """Transfer time at the known rate; 0 if none is known."""
        return 0.0 if self._bits is None else self._transfer_s * bits / max(self._bits, 1.0)

    def _learn_rtt(self, seconds: float) -> None:
        if self._is_shared(seconds):
            return  # the delay passes with the download
        # Two round trips at nearly the same time are delayed alike, and say nothing about how they waver.
        if self._rtt_learnt_at is None or self._now() - self._rtt_learnt_at > SAMPLE_S:
            self._trips.append(seconds)
            self._jitter_s = self._wavering_s()
        missed_s = seconds - self._rtt_s
        weight = self._smoothing * min(1.0, max(_LEAST_WEIGHT, abs(missed_s) / (2 * self._jitter_s)))
        self._rtt_s += (1.0 if self._rtt_learnt_at is None else weight) * missed_s
        self._rtt_learnt_at = self._now()
        # With bunches the mean wavers as well: show that it has moved only if it has moved by more than that.
        if not self._bunched or len(self._trips) < _FEW_STEPS or abs(self._rtt_s - self._shown_rtt_s) > self._jitter_s:
            self._shown_rtt_s = self._rtt_s

    def _wavering_s(self) -> float:
        """How far a round trip is from the usual one, judging by the latest ones."""
        steps = sorted(abs(later - earlier) for earlier, later in itertools.pairwise(self._trips))
        if len(steps) < _FEW_STEPS:
            return max(_JITTER_S, *steps) if len(steps) >= _LEAST_STEPS else _UNKNOWN_JITTER_S
        return max(_JITTER_S, steps[int(_USUAL * len(steps))])

    def _learn_bandwidth(self, bits: float, transfer_s: float, jitter_s: float, paired: bool = False) -> None:
        if self._bits is None:
            self._bits, self._transfer_s = max(bits, 1.0), max(bits, 1.0) / 1e6 / self._initial_mbits
        expected_s = self._expected_s(bits)
        if abs(transfer_s - expected_s) > (_UNEXPLAINED_PAIR if paired else _UNEXPLAINED) * jitter_s:
            samples = max(1.0, (self._now() - self._bandwidth_learnt_at) / SAMPLE_S)
            weight = 1.0 if jitter_s < _JITTER_S else 1.0 - (1.0 - self._smoothing) ** samples
        else:
            # A time that wavers by more than its length says no more when it is long than when it is short.
            telling_s = max(transfer_s, expected_s) if not paired else expected_s
            weight = self._smoothing * min(1.0, telling_s / (_CLEAR * jitter_s))
            if not self._bunched:  # first a plain mean, then a sliding one
                self._samples += 1
                weight = max(weight, 1.0 / self._samples)
        self._bits += weight * (bits - self._bits)
        self._transfer_s += weight * (transfer_s - self._transfer_s)
        self._bandwidth_learnt_at = self._now()

    def _transfer_of(self, seconds: float, trip_s: float | None) -> float:
        """Time without the round trip of the frame's own ping; it may be negative: jitter cancels out in the mean.

        Without such a ping it is at least 2 % of the time, so that wrong times stay harmless.
        """
        if trip_s is not None:
            return max(seconds - trip_s, seconds / 50) if self._samples < _FEW_STEPS else seconds - trip_s
        rtt_s = self._rtt_s
        if self._rtt_learnt_at is None or self._now() - self._rtt_learnt_at > _MINUTE_SECONDS:
            # There is no recent round trip; all that is known is that the fastest frame took longer.
            rtt_s = min(rtt_s, self._floor_s() / 2, seconds / 2)
        return max(seconds - rtt_s, seconds / 50)

    def _floor_s(self) -> float:
        oldest = self._now() - _MINUTE_SECONDS
        while self._fastest and self._fastest[0][0] < oldest:
            self._fastest.popleft()
        return self._fastest[0][1] if self._fastest else self._rtt_s
