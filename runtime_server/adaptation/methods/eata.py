"""EATA: entropy falls only of windows that are reliable and unlike the mean one (Niu et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.entropies import entropies, most, reliability
from runtime_server.adaptation.methods.adaptation_method import LEARNING_RATE, MOMENTUM

MAX_COSINE = 0.05
"""A window whose scores are more like the moving mean of all scores is redundant."""
_MEAN_KEEPS = 0.9


def importance(classifier: Classifier, windows: Tensor) -> dict[str, Tensor]:
    """How much each parameter matters for clean windows (n, samples): the diagonal of the Fisher matrix, for the labels
    that the classifier gives them itself.
    """
    parameters = classifier.adaptable()
    found = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for window in windows:
        logits = classifier(window[None])
        loss = functional.cross_entropy(logits, logits.argmax(1))
        for name, slope in zip(found, torch.autograd.grad(loss, [*parameters.values()]), strict=True):
            found[name] += slope**2 / len(windows)
    return found


class Eata:
    """`mean(exp(E_max - H) H)` over the windows that pass both filters, and a penalty on forgetting.

    `matters` is the `importance` of the parameters for clean windows; without it nothing holds them.
    """

    PENALTY = 2000.0

    def __init__(
        self,
        classifier: Classifier,
        learning_rate: float = LEARNING_RATE,
        matters: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._classifier, self._matters = classifier, matters or {}
        self._parameters = classifier.adaptable()
        self._optimiser = torch.optim.SGD(self._parameters.values(), lr=learning_rate, momentum=MOMENTUM)
        self._mean: Tensor | None = None
        self._begun = {name: value.detach().clone() for name, value in self._parameters.items()}

    def update(self, windows: Tensor) -> None:
        """See the interface; nothing changes if no window passes."""
        logits = self._classifier(windows)
        entropy, labels = entropies(logits), logits.shape[1]
        chosen = entropy.detach() < most(labels)
        scores = logits.detach().softmax(1)
        if self._mean is not None:
            chosen &= functional.cosine_similarity(scores, self._mean[None], dim=1).abs() < MAX_COSINE
        if not chosen.any():
            return
        mean = scores[chosen].mean(0)
        self._mean = mean if self._mean is None else _MEAN_KEEPS * self._mean + (1 - _MEAN_KEEPS) * mean
        loss = (reliability(entropy, labels) * entropy)[chosen].mean()
        for name, matters in self._matters.items():
            loss = loss + self.PENALTY * (matters * (self._parameters[name] - self._begun[name]) ** 2).sum()
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
