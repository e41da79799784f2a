"""Measures how fast plain Python runs here: besides the blocks, that is most of a device's work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_PYTHON_RUNS = 30


def python_ms(clock: Callable[[], float] = time.perf_counter) -> float:
    """The median time of a fixed piece of plain Python, ms: numbers, texts, dictionaries and calls."""
    times = []
    for _ in range(_PYTHON_RUNS):
        began = clock()
        _python_work()
        times.append((clock() - began) * 1e3)
    return statistics.median(times)


def _python_work() -> int:
    counts: dict[str, int] = {}
    for number in range(5_000):
        key = f"key-{number % 97}"
        counts[key] = counts.get(key, 0) + len(key) * number
    return max(counts.values())
