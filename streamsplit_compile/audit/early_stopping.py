"""Trains an attacker's network and keeps what it was after its best epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_EPOCHS, _PATIENCE = 16, 4


def train_until_worse(
    network: nn.Module,
    places: npt.NDArray[np.int64],
    batch_size: int,
    optimiser: torch.optim.Optimizer,
    random: np.random.Generator,
    loss: Callable[[Tensor], Tensor],
    quality: Callable[[], float],
) -> None:
    """Train on the examples at these places, in place, with one cycle of the learning rate up to twice its own.

    `loss` is that of the examples at some places (n,). `quality` is asked after each of at most 16 epochs; four
    without a better one end the training. The network is left as it was after the best epoch, in eval mode.
    """
    (group,) = optimiser.param_groups
    steps = _EPOCHS * -(-len(places) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2 * group["lr"], total_steps=steps)
    best, kept, last = -np.inf, copy.deepcopy(network.state_dict()), 0
    for epoch in range(_EPOCHS):
        network.train()
        for batch in _batches(random.permutation(places), batch_size):
            found = loss(batch)
            optimiser.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        network.eval()
        found_quality = quality()
        if found_quality > best:
            best, kept, last = found_quality, copy.deepcopy(network.state_dict()), epoch
        elif epoch - last >= _PATIENCE:
            break
    network.load_state_dict(kept)


def _batches(places: npt.NDArray[np.int64], size: int) -> Iterator[Tensor]:
    """Batches of places; one that would be a single example, of which no norm can be taken, is left out."""
    for start in range(0, len(places), size):
        if len(batch := places[start : start + size]) > 1:
            yield torch.from_numpy(batch)
