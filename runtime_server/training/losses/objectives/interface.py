"""The interface of an objective: a loss of two views, with its own parameters and state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx, nn

NEARBY = 8
"""Windows of one boot at most so far apart may hear the same thing: they are never negatives of each other."""


@dataclass(frozen=True)
class Views:
    """Two views of each window of a batch."""

    anchors: Tensor
    """float32[n, d], of unit norm."""
    positives: Tensor
    """float32[n, d], of unit norm: the other view of the same window."""
    negatives: Tensor | None = None
    """float32[n, m, d], virtual ones for each anchor."""
    ignore: Tensor | None = None
    """bool[n, n], pairs of windows that may hear the same thing and are no negatives; the diagonal is not looked at."""
    matches: Tensor | None = None
    """bool[n, n], pairs that hear the same thing, besides a window and itself."""
    windows: Tensor | None = None
    """int64[n], window indices."""
    chains: Tensor | None = None
    """int64[n], a number for each boot of each device."""


class Objective(nn.Module, ABC):
    """Its parameters are trained, and its state dict is in the checkpoint.

    Args:
        segments: of the encoder that is trained.
        width: of the embeddings.
        temperature: where the objective has one.
        seed: of its first parameters.
    """

    virtual_negatives: ClassVar[bool] = False
    """Whether `Views.negatives` are wanted."""
    key_segments: Sequence[fx.GraphModule] | None = None
    """What embeds the second view, without gradients; None: the segments that are trained."""

    def __init__(self, segments: Sequence[fx.GraphModule], *, width: int, temperature: float, seed: int) -> None:
        super().__init__()
        self._temperature = temperature

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """The loss of a batch, a scalar: from one window up, and with finite gradients when all are the same."""

    def after_step(self) -> None:
        """Follow a step of the optimiser."""
