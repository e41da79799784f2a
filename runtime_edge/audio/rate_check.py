"""Checks whether a live source delivers the sample rate that it states."""

from __future__ import annotations

import logging

from runtime_edge.audio.audio_block import Counters
from runtime_edge.audio.stream import STALL_SECONDS

_LOG = logging.getLogger(__name__)
_SETTLING_S = 1.0
"""How long after the start nothing counts: a pipe may hold audio from before anybody read it."""
_JITTER_S = 0.3
"""Seconds of audio that may come early or late within a span."""
_SPANS = ((2.0, 3, 0.02), (20.0, 2, 0.02), (120.0, 3, 0.005))
"""For each check, the length of a span in seconds, how many spans in a row must be too high or too low, and by which
share: gross errors are noticed within seconds, one of 4 % within a minute, and one of 0.8 % within six. Sound cards
differ by less than 0.1 %.
"""
_FLOOD_S = 10.0
"""Seconds of audio ahead of the clock at the end of a stream that show it was a recording, read as if it were live."""
_SHORTEST_S = 0.001


class RateCheck:
    """Counts samples against the clock; reports once, and in the counters, when the stated rate is wrong.

    A stall does not count: it leaves a gap of its own. Nor does a burst of audio after a stall or at the start.
    """

    def __init__(self, rate_hz: int, counters: Counters) -> None:
        self._rate_hz, self._counters = rate_hz, counters
        self._begun: float | None = None
        self._last = 0.0
        self._total = 0
        self._spans: list[_Spans] = []

    def heard(self, count: int, now: float) -> None:
        """Count samples that have arrived at `now`, in seconds of a clock that never jumps."""
        if self._begun is None or now - self._last > STALL_SECONDS:
            self._begun, self._total, self._spans = now, 0, []
        self._last = now
        self._total += count
        if not self._spans and now - self._begun >= _SETTLING_S:
            self._spans = [_Spans(*span, now, self._total) for span in _SPANS]
        for spans in self._spans:
            if hz := spans.wrong_hz(now, self._total, self._rate_hz):
                self._wrong(hz)

    def ended(self) -> None:
        """The stream has ended."""
        lasted_s, heard_s = self._last - (self._begun or 0.0), self._total / self._rate_hz
        if heard_s > lasted_s + _FLOOD_S and heard_s > 2 * lasted_s:
            self._wrong(self._total / max(lasted_s, _SHORTEST_S))

    def _wrong(self, hz: float) -> None:
        if self._counters.measured_rate_hz:
            return
        measured = self._counters.measured_rate_hz = max(1, round(hz))
        _LOG.warning(
            "the source delivers %s samples a second, not the %s stated: times and pitch are wrong; correct its rate "
            "(--stdin-rate), or read a recording with --no-realtime",
            f"{measured:,}",
            f"{self._rate_hz:,}",
        )


class _Spans:
    """Consecutive spans of at least `span_s`, and how many in a row were off in the same direction."""

    def __init__(self, span_s: float, needed: int, tolerance: float, now: float, total: int) -> None:
        self._span_s, self._needed, self._tolerance = span_s, needed, tolerance
        self._begin = self._run_begin = now, total
        self._run = 0
        """Spans in a row: positive with too many samples, negative with too few."""

    def wrong_hz(self, now: float, total: int, rate_hz: int) -> float | None:
        """The measured rate, when a long enough row of spans has just ended; else None."""
        elapsed = now - self._begin[0]
        if elapsed < self._span_s:
            return None
        off_s = (total - self._begin[1]) / rate_hz - elapsed
        sign = 0 if abs(off_s) <= self._tolerance * elapsed + _JITTER_S else 1 if off_s > 0 else -1
        if sign * self._run <= 0:
            self._run, self._run_begin = 0, self._begin
        self._run += sign
        self._begin = now, total
        if abs(self._run) < self._needed:
            return None
        return (total - self._run_begin[1]) / (now - self._run_begin[0])
