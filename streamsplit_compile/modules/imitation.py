"""Trains a sub-model for a short time, without labels, to give the whole encoder's embeddings.

loss = 1 - cos(z, whole encoder's z)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsplit_compile.modules.observation import BATCH

_LEARNING_RATE = 1e-3
_WARM_UP = 10


def imitate(
    small: nn.Module,
    windows: Tensor,
    embeddings: Tensor,
    steps: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train on windows (n, samples) float32 and their embeddings (n, d) by the whole encoder, with Adam.

    Batch statistics stay as they are.
    """
    random = torch.Generator().manual_seed(seed)
    parameters = [parameter.requires_grad_() for parameter in small.eval().parameters()]
    optimiser = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    for step in range(steps):
        progress(step, steps)
        for group in optimiser.param_groups:
            falling = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / _WARM_UP) * falling
        chosen = torch.randint(len(windows), (BATCH,), generator=random)
        loss = 1 - functional.cosine_similarity(small(windows[chosen]), embeddings[chosen]).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
