"""SAR: entropy falls where it stays low nearby, and everything is reset before it collapses (Niu et al., ICLR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.entropies import entropies, most
from runtime_server.adaptation.methods.adaptation_method import LEARNING_RATE, MOMENTUM

RADIUS = 0.05
"""How far the parameters are moved up the slope before the step is computed."""
COLLAPSED = 0.2
"""The moving mean of the entropy, in nats, below which the model gives one answer to everything."""
_MEAN_KEEPS = 0.9


class Sar:
    """Sharpness-aware steps on the entropy of reliable windows, with resets."""

    def __init__(self, classifier: Classifier, learning_rate: float = LEARNING_RATE) -> None:
        self._classifier = classifier
        self._parameters = classifier.adaptable()
        self._optimiser = torch.optim.SGD(self._parameters.values(), lr=learning_rate, momentum=MOMENTUM)
        self._begun = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._mean: float | None = None
        self.resets = 0

    def update(self, windows: Tensor) -> None:
        """See the interface; nothing changes if no window is reliable."""
        loss = self._loss(windows)
        if loss is None:
            return
        values = list(self._parameters.values())
        slopes = torch.autograd.grad(loss, values)
        length = torch.sqrt(sum(slope.pow(2).sum() for slope in slopes)) + 1e-12  # type: ignore[arg-type]
        moves = [RADIUS * slope / length for slope in slopes]
        self._move(moves)
        nearby = self._loss(windows)
        if nearby is not None:
            self._optimiser.zero_grad()
            nearby.backward()  # type: ignore[no-untyped-call]
        self._move([-move for move in moves])
        if nearby is not None:
            self._optimiser.step()
            self._watch(float(nearby.detach()))

    def _loss(self, windows: Tensor) -> Tensor | None:
        """Mean entropy of the reliable windows; None if there are none."""
        logits = self._classifier(windows)
        entropy = entropies(logits)
        chosen = entropy.detach() < most(logits.shape[1])
        return entropy[chosen].mean() if chosen.any() else None

    def _move(self, by: list[Tensor]) -> None:
        with torch.no_grad():
            for value, step in zip(self._parameters.values(), by, strict=True):
                value.add_(step)

    def _watch(self, entropy: float) -> None:
        self._mean = entropy if self._mean is None else _MEAN_KEEPS * self._mean + (1 - _MEAN_KEEPS) * entropy
        if self._mean < COLLAPSED:
            with torch.no_grad():
                for name, value in self._parameters.items():
                    value.copy_(self._begun[name])
            self._optimiser.state.clear()
            self._mean, self.resets = None, self.resets + 1
