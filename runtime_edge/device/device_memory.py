"""What the device has heard so far: its memory, taught by every window once (docs/method.md, section 4)."""

from __future__ import annotations

from runtime_edge.inference.engine import Embedding
from runtime_edge.policy.memory import GaussianMemory

_REMEMBERED = 1024


class DeviceMemory:
    """The mixture and the latest uncertainty it gave."""

    def __init__(self, dim: int) -> None:
        self.mixture = GaussianMemory(dim=dim)
        self.uncertainty: float | None = None
        """Normalised, in [0, 1]; None before the first window."""
        self._taught: dict[int, None] = {}

    def teach(self, window: int, embedding: Embedding) -> float:
        """Learn from a window's embedding (d,); returns its uncertainty."""
        self._taught[window] = None
        if len(self._taught) > _REMEMBERED:
            self._taught.pop(next(iter(self._taught)))
        self.uncertainty = self.mixture.update(embedding)
        return self.uncertainty

    def teach_late(self, window: int, embedding: Embedding) -> None:
        """Learn from an answer after its deadline, unless the device has finished the window by itself."""
        if window not in self._taught:
            self.teach(window, embedding)
