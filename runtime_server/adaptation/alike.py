"""Which devices hear alike: those whose sounds have much the same spectrum, of quiet, usual and loud moments."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

LEAST_WINDOWS, LATEST_WINDOWS = 32, 64
"""How many windows of a device are needed, and how many of the latest are compared."""
JOINS_DB, LEAVES_DB = 6.0, 9.0
"""A device joins a group up to the first distance, and leaves it beyond the second (docs/measurements.md)."""
MAX_DEVICES = 1024
"""With more, those that were heard longest ago are forgotten."""
_BANDS, _MOMENTS, _LOWEST_SHARE = 24, 16, 1 / 128
"""Bands of a spectrum, equally wide in octaves, from this share of half the sample rate on; moments of a window."""
_QUANTILES = (0.1, 0.5, 0.9)
_SILENCE = 1e-10
Array = npt.NDArray[np.float32]


@dataclass
class _Heard:
    """What one device has heard lately."""

    target: str
    founder: str
    windows: deque[Array] = field(default_factory=lambda: deque(maxlen=LATEST_WINDOWS))
    count: int = 0

    def profile(self) -> Array:
        """(quantiles, bands) dB over all moments."""
        return np.quantile(np.concatenate(self.windows), _QUANTILES, axis=0).astype(np.float32)


class AlikeDevices:
    """Groups of devices of one target, each named by the device that founded it. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: OrderedDict[str, _Heard] = OrderedDict()

    def hear(self, device: str, target: str, window: Array) -> None:
        """Take a window (samples,) float32 of a device; after every 32nd its group is found anew."""
        levels = band_levels(window)
        with self._lock:
            mine = self._heard.get(device)
            if mine is None or mine.target != target:
                mine = self._heard[device] = _Heard(target, device)
            self._heard.move_to_end(device)
            while len(self._heard) > MAX_DEVICES:
                self._heard.popitem(last=False)
            mine.windows.append(levels)
            mine.count += 1
            if mine.count % LEAST_WINDOWS == 0:
                mine.founder = self._founder(device, mine)

    def founder(self, device: str) -> str:
        """The founder of a device's group: itself if no other hears alike, or too little of it was heard."""
        with self._lock:
            mine = self._heard.get(device)
            return device if mine is None or mine.founder not in self._heard else mine.founder

    def _founder(self, device: str, mine: _Heard) -> str:
        """The nearest founder that is near enough. A device that others follow follows nobody."""
        if any(other.founder == device for name, other in self._heard.items() if name != device):
            return device
        profile = mine.profile()
        found = {
            name: _distance(profile, other.profile())
            for name, other in self._heard.items()
            if name != device and other.founder == name and other.target == mine.target and _known(other)
        }
        if found.get(mine.founder, LEAVES_DB) < LEAVES_DB:
            return mine.founder
        nearest = min(found, key=lambda name: found[name], default=device)
        return nearest if found.get(nearest, JOINS_DB) < JOINS_DB else device


def band_levels(window: Array) -> Array:
    """Levels (moments, bands) in dB of a window (samples,) float32."""
    size = len(window) // _MOMENTS
    moments = window[: size * _MOMENTS].reshape(_MOMENTS, size) * np.hanning(size)
    power = np.abs(np.fft.rfft(moments)) ** 2 / size
    edges = np.geomspace(_LOWEST_SHARE, 1.0, _BANDS + 1) * (power.shape[1] - 1)
    starts = np.floor(edges).astype(int)
    bands = [power[:, low : max(low + 1, high)].mean(1) for low, high in pairwise(starts)]
    return (10 * np.log10(np.stack(bands, 1) + _SILENCE)).astype(np.float32)


def _known(heard: _Heard) -> bool:
    return len(heard.windows) >= LEAST_WINDOWS


def _distance(one: Array, other: Array) -> float:
    """Root of the mean square difference, dB."""
    return float(np.sqrt(np.mean((one - other) ** 2)))
