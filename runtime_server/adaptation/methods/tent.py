"""TENT: the entropy of every window falls (Wang et al., ICLR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.entropies import entropies
from runtime_server.adaptation.methods.adaptation_method import LEARNING_RATE, MOMENTUM


class Tent:
    """Steps on the mean entropy, with frozen statistics."""

    def __init__(self, classifier: Classifier, learning_rate: float = LEARNING_RATE) -> None:
        self._classifier = classifier
        self._optimiser = torch.optim.SGD(classifier.adaptable().values(), lr=learning_rate, momentum=MOMENTUM)

    def update(self, windows: Tensor) -> None:
        """See the interface."""
        self._optimiser.zero_grad()
        entropies(self._classifier(windows)).mean().backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
