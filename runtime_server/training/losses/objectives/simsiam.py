"""SimSiam: predicts one view from the other, which has no gradient (Chen and He 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from runtime_server.training.losses.objectives.interface import Objective, Views
from runtime_server.training.losses.objectives.standardised import standardised


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of `-cos` between [n, d] and [n, d]; no gradient flows into the targets."""
    return -nn.functional.cosine_similarity(predictions, targets.detach(), dim=1).mean()


class Predictor(nn.Module):
    """A bottleneck with a quarter of the width: linear, batch norm, ReLU, linear."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        hidden, generator = max(width // 4, 1), torch.Generator().manual_seed(seed)
        self._scale = width**0.5
        self.narrow, self.widen = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width)
        for layer in (self.narrow, self.widen):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.gain, self.shift = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Predictions [n, d] of unit embeddings [n, d]."""
        hidden = standardised(self.narrow(embeddings * self._scale)) * self.gain + self.shift
        return self.widen(hidden.relu())  # type: ignore[no-any-return]


class SimSiam(Objective):
    """Symmetric, as published, with the predictor on unit embeddings. It has no negatives."""

    def __init__(self, segments: Sequence[fx.GraphModule], *, width: int, temperature: float, seed: int) -> None:
        super().__init__(segments, width=width, temperature=temperature, seed=seed)
        self.predictor = Predictor(width, seed)

    def forward(self, views: Views) -> Tensor:
        """The mean of both directions."""
        first, second = views.anchors, views.positives
        one, other = self.predictor(first), self.predictor(second)
        return 0.5 * (negative_cosine(one, second) + negative_cosine(other, first))
