"""Prepares an encoder for sub-models: the selector learns which groups matter, then sub-models learn to do without.

    selector:   CE(logits of the groups with the largest gates) + BALANCE balance,   the encoder stays as it is
    enhancing:  CE(logits of sub-task t's groups) + CE(logits of all) + KL(g, P_t),  `M_t` and `P_t` of `sub_tasks`

CE is the cross-entropy with labels. A gate is 0 or 1 in a sub-model, so it is in training; its gradient is that of the
soft gate, in units in which the mean gate of a layer is 1 (the straight-through estimator; ours). Batch norms use the
statistics of the batch, because those of a sub-model are measured again when it is derived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime_server.submodels.gating import gated
from runtime_server.submodels.selector import Selector, balance_loss
from runtime_server.submodels.sub_tasks import masks, wanted
from streamsplit_compile.modules.slicing import recalibrate

BALANCE, BATCH = 0.01, 32
SELECTOR_RATE, ENCODER_RATE = 0.1, 5e-4


@dataclass(frozen=True)
class Lessons:
    """Labelled windows."""

    windows: Tensor
    """(n, ...) float32, as the encoder takes them."""
    labels: Tensor
    """(n,) int64."""
    responsibilities: Tensor
    """(n, components) float32."""

    def batch(self, random: torch.Generator, among: Tensor | None = None) -> Lessons:
        """`BATCH` of the windows, or of those with the numbers `among` (m,), with replacement."""
        chosen = torch.randint(len(self.labels) if among is None else len(among), (BATCH,), generator=random)
        chosen = chosen if among is None else among[chosen]
        return Lessons(self.windows[chosen], self.labels[chosen], self.responsibilities[chosen])


def top(gates: Tensor, count: int) -> Tensor:
    """1 for the `count` largest gates of each row (..., groups), 0 for the others, with the soft gates' gradient."""
    hard = torch.zeros_like(gates).scatter(-1, gates.topk(count, -1).indices, 1.0)
    soft = gates * gates.shape[-1]
    return hard + soft - soft.detach()


def train_selector(
    encoder: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    selector: Selector,
    lessons: Lessons,
    counts: Mapping[str, int],
    steps: int,
    seed: int = 0,
) -> None:
    """Train the selector with `counts` groups of each layer on; `logits_of` (n, d) embeddings gives (n, classes)."""
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(selector.parameters(), lr=SELECTOR_RATE)
    with _batch_statistics(encoder):
        for _ in range(steps):
            batch = lessons.batch(random)
            gates = selector(batch.responsibilities)
            with gated(encoder, {name: top(own, counts[name]) for name, own in gates.items()}):
                loss = functional.cross_entropy(logits_of(encoder(batch.windows)), batch.labels)
            loss = loss + BALANCE * balance_loss(gates)
            _step(optimiser, loss, selector)


def enhance(
    encoder: nn.Module,
    head: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    selector: Selector,
    lessons: Lessons,
    tasks: Sequence[Tensor],
    counts: Mapping[str, int],
    steps: int,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train all that asks for gradients in encoder and head, and the selector; returns masks (sub-tasks, groups).

    `tasks` are the windows of each sub-task, by number; `logits_of` uses the head. Batch statistics of the whole
    encoder are measured again at the end. Raises UsageError if no masks meet the limits.
    """
    chosen = task_masks(selector, lessons, tasks, counts)
    random = torch.Generator().manual_seed(seed)
    parameters = [one for one in (*encoder.parameters(), *head.parameters()) if one.requires_grad]
    optimiser = torch.optim.Adam(
        [{"params": parameters, "lr": ENCODER_RATE}, {"params": selector.parameters(), "lr": SELECTOR_RATE}]
    )
    starts = [group["lr"] for group in optimiser.param_groups]
    every = nn.ModuleList([encoder, head, selector])
    with _batch_statistics(encoder):
        for step in range(steps):
            for group, start in zip(optimiser.param_groups, starts, strict=True):
                group["lr"] = start * 0.5 * (1 + math.cos(math.pi * step / steps))
            task = step % len(tasks)
            batch, whole = lessons.batch(random, tasks[task]), lessons.batch(random)
            with gated(encoder, {name: mask[task] for name, mask in chosen.items()}):
                loss = functional.cross_entropy(logits_of(encoder(batch.windows)), batch.labels)
            loss = loss + functional.cross_entropy(logits_of(encoder(whole.windows)), whole.labels)
            loss = loss + _distance(selector(batch.responsibilities), {n: mask[task] for n, mask in chosen.items()})
            _step(optimiser, loss, every)
    recalibrate(encoder, lessons.windows)
    return chosen


def task_masks(
    selector: Selector, lessons: Lessons, tasks: Sequence[Tensor], counts: Mapping[str, int]
) -> dict[str, Tensor]:
    """Which groups (sub-tasks, groups) float32 of each layer serve which sub-task; each serves one at least.

    Where the counts leave no room for that, a group may serve none. Raises UsageError if no masks meet the limits.
    """
    heard = [selector.importance(lessons.responsibilities[task]) for task in tasks]
    found = {}
    for name, count in counts.items():
        mean = np.stack([own[name].double().numpy() for own in heard])
        least = int(count * len(tasks) >= mean.shape[1])
        found[name] = torch.from_numpy(masks(mean, count, least, len(tasks))).float()
    return found


def _distance(gates: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
    """KL(g, P_t), the mean over layers and windows, where P_t is not zero to rounding."""
    each = []
    for name, own in gates.items():
        target = wanted(own.detach(), mask[name]) + 1e-6
        each.append((own * (torch.log(own + 1e-12) - torch.log(target))).sum(1).mean())
    return torch.stack(each).mean()


@contextmanager
def _batch_statistics(encoder: nn.Module) -> Iterator[None]:
    """While open, batch norms of an encoder use the batch's statistics and keep their own as they are."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.eval()
            norm.track_running_stats = True


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, trained: nn.Module) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([one for one in trained.parameters() if one.requires_grad], 1.0)
    optimiser.step()
