"""What the methods have in common."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

BATCH = 32
"""Windows of a step."""
LEARNING_RATE, MOMENTUM = 2.5e-3, 0.9


class Method(Protocol):
    """Moves the normalisation layers of a classifier, batch by batch."""

    def update(self, windows: Tensor) -> None:
        """One step on the windows (n, samples) float32 that devices have sent."""
