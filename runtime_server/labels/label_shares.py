"""Limits how many windows each device contributes to a head, because nobody can check what it really heard."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence


def shared_out(devices: Sequence[str], labels: Sequence[tuple[str, ...]]) -> list[int]:
    """Places, ascending, of the windows to train on, given the device and the labels of each.

    No device gets more than the median one has (the larger of two), so that of ten none has more than a fifth, whatever
    it sends. One that has more keeps every so many of its windows, of each combination of labels in proportion and one
    at least.
    """
    counts = Counter(devices)
    most = statistics.median_high(counts.values()) if counts else 0
    places: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place, key in enumerate(zip(devices, labels, strict=True)):
        places.setdefault(key, []).append(place)
    kept: list[int] = []
    for (device, _), own in places.items():
        share = len(own) if counts[device] <= most else max(1, len(own) * most // counts[device])
        kept += [own[number * len(own) // share] for number in range(share)]
    return sorted(kept)
