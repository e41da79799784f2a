"""The selector: how much each group of channels matters for a window, from what the window sounds like.

With `r` (components,) the responsibilities of a mixture for the window's embedding, which a device has anyway, and a
learnt matrix for each layer (docs/method.md, section 10; the choice of `r` is ours):

    g_l = softmax(r W_l)                                                              (groups,)
    balance = mean over layers of CV²(mean of g_l over windows),  CV² = variance / mean²

The mean of the gates over a device's windows is the importance of the groups for that device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runtime_edge.policy.memory import GaussianMemory


class Selector(nn.Module):
    """Gates (windows, groups) of each layer from responsibilities (windows, components)."""

    def __init__(self, components: int, importance: Mapping[str, Tensor]) -> None:
        """At first the gates are the same for all windows: the shares of `importance` (groups,) >= 0 by layer."""
        super().__init__()
        self.names = tuple(importance)
        starts = [torch.log(values.float() / values.sum().clamp(min=1e-12) + 1e-6) for values in importance.values()]
        self.matrices = nn.ParameterList([start.repeat(components, 1) for start in starts])

    def forward(self, responsibilities: Tensor) -> dict[str, Tensor]:
        """(windows, components) float32 -> (windows, groups) by layer, each row adding up to 1."""
        return {
            name: torch.softmax(responsibilities @ matrix, 1)
            for name, matrix in zip(self.names, self.matrices, strict=True)
        }

    @torch.no_grad()
    def importance(self, responsibilities: Tensor) -> dict[str, Tensor]:
        """The mean gate (groups,) of each layer over windows (windows, components)."""
        return {name: gates.mean(0) for name, gates in self(responsibilities).items()}


def balance_loss(gates: Mapping[str, Tensor]) -> Tensor:
    """The squared coefficient of variation of the mean gates, averaged over layers; 0 if all groups are used alike."""
    means = [values.mean(0) for values in gates.values()]
    return torch.stack([mean.var(unbiased=False) / mean.mean().square() for mean in means]).mean()


def responsibilities_of(memory: GaussianMemory, embeddings: Tensor) -> Tensor:
    """The posterior of the mixture's components (n, components) float32 for unit embeddings (n, d)."""
    means, variances = torch.from_numpy(memory.means).double(), torch.from_numpy(memory.variances).double()
    squares = (embeddings.double()[:, None] - means).square() / variances
    logs = torch.from_numpy(memory.weights).double().log() - 0.5 * (squares + variances.log()).sum(2)
    return torch.softmax(logs, 1).float()
