"""Keep or ship: which windows are worth sending, judged by the device's own result (docs/method.md, section 9).

gate = ShipGate(table.ship, seed=0)
gate.ships(entropy)         # of the labels' scores, as a share of ln C
MostUncertain(share=0.25).ships(entropy)
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from runtime_edge.formats.records.actions import ShipThresholds


class Gate(Protocol):
    """Decides window by window."""

    def ships(self, entropy: float) -> bool:
        """Whether to ship a window whose scores have this entropy, a share of `ln C` in [0, 1]."""


class ShipGate:
    """Ships windows that are neither certain nor hopeless, and a share of the rest, lest the server go blind.

    After the warm-up the upper threshold follows the running mean entropy, so that about as many windows are shipped
    in a noisier place as before.
    """

    def __init__(self, thresholds: ShipThresholds, seed: int = 0) -> None:
        self.thresholds = thresholds
        self._random = np.random.default_rng(seed)
        self._windows, self._mean, self._after_warm_up = 0, 0.0, 0.0

    @property
    def max_entropy(self) -> float:
        """The entropy above which a window is currently kept."""
        given = self.thresholds
        if self._windows <= given.warm_up or self._after_warm_up <= 0:
            return given.max_entropy
        return given.max_entropy * given.max_entropy_scale * self._mean / self._after_warm_up

    def ships(self, entropy: float) -> bool:
        """Whether to ship a window whose scores have this entropy, a share of `ln C` in [0, 1]."""
        self._windows += 1
        self._mean += (entropy - self._mean) / self._windows
        if self._windows == self.thresholds.warm_up:
            self._after_warm_up = self._mean
        if self.thresholds.min_entropy < entropy < self.max_entropy:
            return True
        return bool(self._random.random() < self.thresholds.exploration)


class MostUncertain:
    """Ships a share of the windows, those with the largest entropies, for a larger encoder (docs/cascade.md).

    The threshold rises a little with each window that is shipped and falls a little with each that is kept, so that
    in the long run `share` of them are above it (Robbins and Monro 1951). Windows about which the head is certain are
    never shipped, so it may be fewer.
    """

    LEAST = 0.02
    """Entropy below which a head is certain."""
    _STEP = 0.02

    def __init__(self, share: float) -> None:
        self._share, self.threshold = share, 1 - share

    def ships(self, entropy: float) -> bool:
        """Whether to ship a window whose scores have this entropy, a share of `ln C` in [0, 1]."""
        ships = entropy > max(self.threshold, self.LEAST)
        self.threshold = min(1.0, max(0.0, self.threshold + self._STEP * (ships - self._share)))
        return ships
