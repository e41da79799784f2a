"""The interface of an objective: a loss of two views, with its own parameters and state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx, nn

NEARBY = 8
"""Windows of one boot at most this far apart may hear the same thing: they are never each other's negatives."""


@dataclass(frozen=True)
class Views:
    """Two views of each window of a batch."""

    anchors: Tensor
    """float32[n, d], of unit norm."""
    positives: Tensor
    """float32[n, d], of unit norm: the other view of the same window."""
    negatives: Tensor | None = None
    """float32[n, m, d], virtual negatives for each anchor."""
    ignore: Tensor | None = None
    """bool[n, n], pairs of windows that may hear the same thing and are not negatives; the diagonal is not used."""
    matches: Tensor | None = None
    """bool[n, n], pairs of different windows that hear the same thing."""
    windows: Tensor | None = None
    """int64[n], window indices."""
    chains: Tensor | None = None
    """int64[n], a number for each boot of each device."""


class Objective(nn.Module, ABC):
    """A loss whose parameters are trained, and whose state dict is part of the checkpoint.

    Args:
        segments: the segments of the trained encoder.
        width: the width of the embeddings.
        temperature: for objectives that have one.
        seed: the seed of its initial parameters.
    """

    virtual_negatives: ClassVar[bool] = False
    """Whether the objective uses `Views.negatives`."""
    key_segments: Sequence[fx.GraphModule] | None = None
    """The segments that embed the second view, without gradients; None: those that are trained."""

    def __init__(self, segments: Sequence[fx.GraphModule], *, width: int, temperature: float, seed: int) -> None:
        super().__init__()
        self._temperature = temperature

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """The loss of a batch of one or more windows, a scalar; gradients are finite if all embeddings are equal."""

    def after_step(self) -> None:
        """Called after each step of the optimiser."""
