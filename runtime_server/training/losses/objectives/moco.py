"""MoCo v2: InfoNCE against a queue of keys, computed by a slowly moving copy of the encoder.

He et al. 2020, and Chen, Fan, Girshick and He 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from runtime_edge.errors import UsageError
from runtime_server.suffix.generations import copy_module
from runtime_server.training.losses.objectives.interface import NEARBY, Objective, Views

MOMENTUM = 0.99
KEYS = 1024
"""Length of the queue (ours): 32 batches of 32. The published 65 536 would hold each of a few thousand windows many
times, computed by long outdated encoders."""
_VACANT = -1


class MoCo(Objective):
    """One direction, as published: anchors are queries, positives are keys and have no gradient.

    The momentum encoder is a copy of the trained blocks. Norm layers do not update their statistics, so batches need no
    shuffling. The queue starts empty, and keys that are near an anchor in time are not its negatives (ours).
    """

    def __init__(
        self,
        segments: Sequence[fx.GraphModule],
        *,
        width: int,
        temperature: float,
        seed: int,
        momentum: float = MOMENTUM,
        keys: int = KEYS,
    ) -> None:
        super().__init__(segments, width=width, temperature=temperature, seed=seed)
        self._momentum = momentum
        trained = nn.ModuleList(segment for segment in segments if _is_trained(segment))
        self.encoder = copy_module(trained).requires_grad_(False)
        # Pairs in a list, so that the trained encoder does not become part of this module.
        self._pairs = list(zip(self.encoder.parameters(), trained.parameters(), strict=True))
        copies: Iterator[Any] = iter(self.encoder)
        self.key_segments = [next(copies) if _is_trained(segment) else segment for segment in segments]
        self.queue: Tensor
        self.windows: Tensor
        self.chains: Tensor
        self.register_buffer("queue", torch.zeros(keys, width))
        self.register_buffer("windows", torch.zeros(keys, dtype=torch.int64))
        self.register_buffer("chains", torch.full((keys,), _VACANT))

    def forward(self, views: Views) -> Tensor:
        """InfoNCE of each anchor against its own key and the queue, to which the keys are then added.

        Raises UsageError without `windows` and `chains`.
        """
        if views.windows is None or views.chains is None:
            raise UsageError("moco: the window index and the chain of each window are needed")
        keys = views.positives.detach()
        same = views.chains[:, None] == self.chains
        near = same & ((views.windows[:, None] - self.windows).abs() <= NEARBY)
        negatives = (views.anchors @ self.queue.T).masked_fill(near | (self.chains == _VACANT), float("-inf"))
        own = (views.anchors * keys).sum(dim=1, keepdim=True)
        logits = torch.cat([own, negatives], dim=1) / self._temperature
        if bool(keys.isfinite().all()):  # one bad batch must not stay in the queue
            self._enqueue(keys, views.windows, views.chains)
        return -logits.log_softmax(dim=1)[:, 0].mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the momentum encoder towards the trained one."""
        for copied, trained in self._pairs:
            copied.lerp_(trained, 1.0 - self._momentum)

    def _enqueue(self, keys: Tensor, windows: Tensor, chains: Tensor) -> None:
        size = len(self.queue)
        self.queue = torch.cat([keys, self.queue])[:size]
        self.windows = torch.cat([windows, self.windows])[:size]
        self.chains = torch.cat([chains, self.chains])[:size]


def _is_trained(segment: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in segment.parameters())
