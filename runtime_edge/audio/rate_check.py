"""Whether a live source brings as many samples a second as it says."""

from __future__ import annotations

import logging

from runtime_edge.audio.block import Counters
from runtime_edge.audio.stream import STALL_SECONDS

_LOG = logging.getLogger(__name__)
_SETTLING_S = 1.0
"""What a pipe held before anybody read it does not count."""
_LEAST_S = 2.0
_TOLERANCE = 0.02
"""Above what sound cards differ by, below the 8 % between 44.1 and 48 kHz."""
_BURST_S = 2.0
"""Audio that may come early or late without being too much or too little."""
_JITTER_S = 0.3
_FLOOD_S = 10.0
"""Audio ahead of the clock that no pipe holds: a recording, read as if it were live."""
_SHORTEST_S = 0.001


class RateCheck:
    """Counts samples against the clock; says once, and in the counters, when the stated rate is wrong.

    A stall does not count: it leaves a gap of its own.
    """

    def __init__(self, rate_hz: int, counters: Counters) -> None:
        self._rate_hz, self._counters = rate_hz, counters
        self._begun: float | None = None
        self._settled: tuple[float, int] | None = None
        """When the pipe was empty, and what had come until then."""
        self._off: tuple[float, int, float] | None = None
        """When the source was first off, what had come until then, and by how many seconds it was."""
        self._last = 0.0
        self._total = 0

    def heard(self, count: int, now: float) -> None:
        """`count` samples have come, by a clock in seconds that never jumps."""
        if self._begun is None or now - self._last > STALL_SECONDS:
            self._begun, self._settled, self._off, self._total = now, None, None, 0
        self._last = now
        self._total += count
        if self._settled is None and now - self._begun >= _SETTLING_S:
            self._settled = now, self._total
        if self._total / self._rate_hz - (now - self._begun) > _FLOOD_S:
            self._wrong(self._total / max(now - self._begun, _SHORTEST_S))
        elif self._settled is not None:
            self._compare(now, *self._settled)

    def _compare(self, now: float, since: float, before: int) -> None:
        """A rate is wrong when more and more is missing, or too much; once only, it may have been a burst."""
        off_s = (self._total - before) / self._rate_hz - (now - since)
        if self._off is None and abs(off_s) > _TOLERANCE * (now - since) + _BURST_S:
            self._off = now, self._total, off_s
        if self._off is not None:
            at, total, earlier_s = self._off
            grown_s = (off_s - earlier_s) * (1 if earlier_s > 0 else -1)
            if now - at >= _LEAST_S and grown_s > _TOLERANCE * (now - at) + _JITTER_S:
                self._wrong((self._total - total) / (now - at))

    def _wrong(self, hz: float) -> None:
        if self._counters.measured_rate_hz:
            return
        measured = self._counters.measured_rate_hz = max(1, round(hz))
        _LOG.warning(
            "the source brings %s samples a second, not the %s stated: times and pitch are wrong; correct its rate "
            "(--stdin-rate), or read a recording with --no-realtime",
            f"{measured:,}",
            f"{self._rate_hz:,}",
        )
