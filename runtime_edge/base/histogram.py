"""A histogram of durations in fixed buckets, as Prometheus expects it."""

from __future__ import annotations

import bisect

import msgspec

BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Histogram(msgspec.Struct):
    """Durations in ms."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))
    """One count for each upper bound (inclusive) of `BOUNDS_MS`, and one for longer durations."""
    sum_ms: float = 0.0

    def observe(self, ms: float) -> None:
        """Count one duration."""
        self.counts[bisect.bisect_left(BOUNDS_MS, ms)] += 1
        self.sum_ms += ms

    def copy(self) -> Histogram:
        """A new histogram with the same counts."""
        return Histogram(self.counts.copy(), self.sum_ms)

    @property
    def count(self) -> int:
        """The number of durations observed."""
        return sum(self.counts)

    @property
    def mean_ms(self) -> float:
        """Mean duration, ms; 0 if there were none."""
        return self.sum_ms / max(self.count, 1)
