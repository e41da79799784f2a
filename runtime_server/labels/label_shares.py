"""Limits how many windows each device contributes to a head, because nobody can check what a device really heard."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence


def shared_out(devices: Sequence[str], labels: Sequence[tuple[str, ...]]) -> list[int]:
    """Indices, ascending, of the windows to train on, given the device and the labels of each.

    No device keeps more windows than the median device has (the larger of two), so that among ten devices none has more
    than a fifth, whatever it sends. A device with more keeps an evenly spaced selection of each combination of labels,
    in proportion and at least one.
    """
    counts = Counter(devices)
    most = statistics.median_high(counts.values()) if counts else 0
    places: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place, key in enumerate(zip(devices, labels, strict=True)):
        places.setdefault(key, []).append(place)
    kept: list[int] = []
    for (device, _), own in places.items():
        share = len(own) if counts[device] <= most else max(1, len(own) * most // counts[device])
        kept += evenly(own, share)
    return sorted(kept)


def thinned(labels: Sequence[tuple[str, ...]], most: int) -> list[int]:
    """Indices, ascending, of about `most` rows: each combination of labels keeps its proportion, and at least one."""
    places: dict[tuple[str, ...], list[int]] = {}
    for place, key in enumerate(labels):
        places.setdefault(key, []).append(place)
    if len(labels) <= most:
        return list(range(len(labels)))
    return sorted(place for own in places.values() for place in evenly(own, max(1, len(own) * most // len(labels))))


def evenly(places: Sequence[int], count: int) -> list[int]:
    """`count` of these, evenly spaced."""
    return [places[number * len(places) // count] for number in range(count)]
