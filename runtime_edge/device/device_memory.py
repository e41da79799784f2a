"""What the device has heard so far: its memory, which learns from every window once (docs/method.md, section 4)."""

from __future__ import annotations

import threading

from runtime_edge.inference.engine import Embedding
from runtime_edge.policy.memory import GaussianMemory

_REMEMBERED = 1024


class DeviceMemory:
    """The mixture and its latest uncertainty. The loop teaches it; the worker asks it about first answers."""

    def __init__(self, dim: int) -> None:
        self.uncertainty: float | None = None
        """Normalised to [0, 1]; None before the first window."""
        self.mixture = GaussianMemory(dim=dim)
        self._lock = threading.Lock()
        self._taught: dict[int, None] = {}

    def judge(self, embedding: Embedding) -> tuple[float, float]:
        """Uncertainty and novelty of a first answer's embedding (d,), before anything is shipped. From any thread."""
        with self._lock:
            uncertainty, novelty = self.mixture.judge(embedding)
            self.uncertainty = uncertainty
        return uncertainty, novelty

    def teach(self, window: int, embedding: Embedding) -> float:
        """Learn from a window's embedding (d,); returns its uncertainty."""
        self._taught[window] = None
        if len(self._taught) > _REMEMBERED:
            self._taught.pop(next(iter(self._taught)))
        with self._lock:
            self.uncertainty = self.mixture.update(embedding)
            return self.uncertainty

    def teach_late(self, window: int, embedding: Embedding) -> None:
        """Learn from an answer after its deadline, unless the device has already finished the window itself."""
        if window not in self._taught:
            self.teach(window, embedding)

    def load(self, data: bytes) -> None:
        """Load the server's mixture parameters. Raises FrameError."""
        with self._lock:
            self.mixture.load(data)
