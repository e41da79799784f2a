"""What a bottleneck should not tell, and the adversary that it is trained against.

The adversary is one network for each width and each kind of label. It learns labels from what is shipped of known
recordings, and the bottleneck learns to leave it at chance (an adversary as in Edwards and Storkey, arXiv 1511.05897):

    loss of the bottleneck += HIDING * mean over labels of (cross-entropy of a guess to the uniform law - ln C)

Whether anything is hidden is not for this adversary to say, but for others that learn afresh (`ssc audit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

HIDING = 0.3
"""Weight of the adversary's knowledge in the loss."""
HIDING_CHANNELS = 16
"""The most channels of a latent that hides something: wider ones give away more."""
OWN_STEPS = 3
"""Steps of the adversary for each step of the bottleneck."""
_BATCH, _HIDDEN = 128, 128
_LEARNING_RATE = 2e-3
_LEAST_DEVIATION = 0.3
"""Added to a channel's deviation, in steps, so that a channel that says nothing is not blown up."""
Label = Literal["words", "speakers"]


@dataclass(frozen=True)
class LabelledWindows:
    """Recordings of which something is to be hidden."""

    windows: npt.NDArray[np.float32]
    """(n, samples)."""
    labels: Mapping[Label, npt.NDArray[np.int64]]
    """For each kind of label that is hidden, (n,): numbers from 0."""


@dataclass(frozen=True)
class LabelledActivations:
    """The same at a cut."""

    activations: Tensor
    """(n, ...) float32."""
    labels: Mapping[Label, Tensor]
    """For each kind of label, (n,) int64."""


class Adversary:
    """Recognises labels in latents (n, channels, rows, columns), at each width by networks of its own."""

    def __init__(
        self, known: LabelledActivations, widths: Sequence[int], grid: tuple[int, int], random: torch.Generator
    ) -> None:
        self._known = known
        places = grid[0] * grid[1]
        classes = {name: int(labels.max()) + 1 for name, labels in known.labels.items()}
        self._networks = {
            (width, name): _network(width * places, count, random)
            for width in widths
            for name, count in classes.items()
        }
        weights = [value for network in self._networks.values() for value in network.parameters()]
        self._optimiser = torch.optim.Adam(weights, _LEARNING_RATE)

    def batch(self, random: np.random.Generator) -> tuple[Tensor, dict[Label, Tensor]]:
        """Activations (128, ...) of some of the recordings, with their labels (128,)."""
        chosen = torch.from_numpy(random.integers(0, len(self._known.activations), _BATCH))
        return self._known.activations[chosen], {name: found[chosen] for name, found in self._known.labels.items()}

    def learn(self, shipped: Tensor, labels: Mapping[Label, Tensor]) -> None:
        """One step of learning, from rounded latents (n, width, rows, columns) with labels (n,)."""
        losses = [functional.cross_entropy(self._guess(name, shipped.detach()), of) for name, of in labels.items()]
        self._optimiser.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def knowledge(self, shipped: Tensor) -> Tensor:
        """How far guesses at latents (n, width, rows, columns) are from the uniform law, in nats; differentiable."""
        found = []
        for name in self._known.labels:
            guess = self._guess(name, shipped).log_softmax(1)
            found.append(-guess.mean() - float(np.log(guess.shape[1])))
        return torch.stack(found).mean()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        networks = {f"{width} {name}": network.state_dict() for (width, name), network in self._networks.items()}
        return {"networks": networks, "optimiser": self._optimiser.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave. Raises KeyError or RuntimeError for that of another adversary."""
        for (width, name), network in self._networks.items():
            network.load_state_dict(state["networks"][f"{width} {name}"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _guess(self, name: Label, shipped: Tensor) -> Tensor:
        """Scores (n, classes)."""
        deviation = shipped.detach().std((0, 2, 3), keepdim=True)
        found: Tensor = self._networks[shipped.shape[1], name]((shipped / (deviation + _LEAST_DEVIATION)).flatten(1))
        return found


def _network(values: int, classes: int, random: torch.Generator) -> nn.Module:
    """Two hidden layers, with initial weights from `random`."""
    network = nn.Sequential(
        nn.Linear(values, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes)
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=random)
            nn.init.zeros_(layer.bias)
    return network
