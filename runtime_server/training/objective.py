"""The loss of a batch whose windows are at several cuts: what is embedded, and which windows are positives or
negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils.checkpoint import checkpoint

from runtime_edge.policy.memory import GaussianMemory
from runtime_server.training.augment import AugmentConfig, augment
from runtime_server.training.buffer import ADJACENCY, WindowGroup
from runtime_server.training.losses import HybridLoss
from runtime_server.training.losses.objectives.interface import NEARBY
from runtime_server.training.ranks import EmbeddingBatch
from streamsplit_compile.encoder.segment import by_channels, run_segments

_MIN_NORM = 1e-5


def batch_of(
    groups: Sequence[WindowGroup],
    segments: Sequence[fx.GraphModule],
    width: int,
    generator: torch.Generator,
    config: AugmentConfig,
    two: bool = True,
    keys: Sequence[fx.GraphModule] | None = None,
    in_memory: int | None = None,
) -> EmbeddingBatch:
    """Embeddings, `width` wide, of two views of each window of `groups`; if `two` is false, of one view, twice.

    If given, `keys` embed the second view, without gradients. For more than `in_memory` windows, the backward pass
    recomputes this many at a time, instead of keeping all intermediate results.
    """
    most = in_memory if in_memory is not None and sum(len(group) for group in groups) > in_memory else None
    drawn = [_views(group, segments, generator, config, two) for group in groups]
    if keys is None or not two:
        both = _embedded(segments, [_Entering.of(views) for views in drawn], most)
        embedded = [(found[: len(group)], found[-len(group) :]) for group, found in zip(groups, both, strict=True)]
    else:
        firsts = _embedded(segments, [views[0] for views in drawn], most)
        with torch.no_grad():
            seconds = _embedded(keys, [views[1] for views in drawn], most)
        embedded = list(zip(firsts, seconds, strict=True))
    none, nowhere = torch.zeros(0, width), torch.zeros(0, dtype=torch.int64)
    return EmbeddingBatch(
        torch.cat([none, *(first for first, _ in embedded)]),
        torch.cat([none, *(second for _, second in embedded)]),
        None,
        torch.cat([nowhere, *(group.windows for group in groups)]),
        torch.cat([nowhere, *(group.chains for group in groups)]),
    )


def batch_loss(batch: EmbeddingBatch, loss: HybridLoss) -> tuple[Tensor, dict[str, float]]:
    """The loss (docs/method.md, section 5) of a batch, and its parts.

    A window's positives are its own other view and the other views of its neighbours in time, at whatever cut each of
    them arrived: two views of a late activation are nearly the same, and teach little.
    """
    apart = (batch.windows[:, None] - batch.windows[None, :]).abs()
    same = batch.chains[:, None] == batch.chains[None, :]
    return loss(
        batch.anchors,
        positives=batch.positives,
        negatives=batch.negatives,
        ignore=same & (apart <= NEARBY),
        matches=same & (apart <= ADJACENCY),
        windows=batch.windows,
        chains=batch.chains,
    )


def virtual_negatives(z: Tensor, mixture: GaussianMemory, count: int, generator: torch.Generator) -> Tensor | None:
    """(n, count, d) samples of the mixture for each of z (n, d) (docs/method.md, section 4).

    None while the mixture is cold, and if an embedding has no direction: then the loss reports what is wrong.
    """
    anchors = z.detach()
    directed = bool((anchors.norm(dim=1) > _MIN_NORM).all())
    if count == 0 or mixture.cold or not directed or not len(anchors):
        return None
    rng = np.random.default_rng(int(torch.randint(1 << 31, (1,), generator=generator)))
    return torch.from_numpy(mixture.sample_negatives(anchors.numpy(), count, rng))


def first_trainable(segments: Sequence[fx.GraphModule]) -> int:
    """How many blocks at the front contain nothing trainable, such as a front end."""
    for number, segment in enumerate(segments):
        if any(parameter.requires_grad for parameter in segment.parameters()):
            return number
    return len(segments)


@dataclass(frozen=True)
class _Entering:
    """Views that enter the encoder at a block."""

    block: int
    activations: Tensor
    """float32[rows, ...]."""
    count: int
    """Number of views: some activations have several rows for each."""

    @classmethod
    def of(cls, several: Sequence[_Entering]) -> _Entering:
        """Join views that enter at the same block."""
        activations, count = torch.cat([one.activations for one in several]), sum(one.count for one in several)
        return cls(several[0].block, activations, count)


def _views(
    group: WindowGroup, segments: Sequence[fx.GraphModule], generator: torch.Generator, config: AugmentConfig, two: bool
) -> list[_Entering]:
    """Two views of each window, or one.

    Blocks that never change run first: then frequencies can be masked in a spectrum, and it is computed once for both
    views.
    """
    start = max(group.cut, min(first_trainable(segments), len(segments) - 1))
    activations = group.activations.flatten(0, 1).float()
    with torch.no_grad():
        activations = run_segments(segments[group.cut : start], activations)
    drawn = [augment(activations, generator, config, waveform=start == 0) for _ in range(1 + two)]
    return [_Entering(start, view, len(group)) for view in drawn]


def _embedded(segments: Sequence[fx.GraphModule], entering: Sequence[_Entering], most: int | None) -> list[Tensor]:
    """Embeddings of each; with `most`, computed this many rows at a time, and again in the backward pass."""
    if most is None:
        return _together(segments, entering)
    found = []
    for views in entering:
        parts = [
            checkpoint(
                run_segments, segments[views.block :], by_channels(part), use_reentrant=False, preserve_rng_state=False
            )
            for part in torch.split(views.activations, most)
        ]
        found.append(torch.cat(parts))
    return found


def _together(segments: Sequence[fx.GraphModule], entering: Sequence[_Entering]) -> list[Tensor]:
    """Embeddings of each; a block runs once for all that have reached it, because a call costs more than a few rows."""
    if not entering:
        return []
    order = sorted(range(len(entering)), key=lambda place: entering[place].block)
    inside: list[Tensor] = []
    for number, segment in enumerate(segments):
        inside += [views.activations for views in entering if views.block == number]
        if inside:
            inside = [run_segments([segment], by_channels(torch.cat(inside)))]
    sizes = [entering[place].count for place in order]
    return [
        part for _, part in sorted(zip(order, torch.split(inside[0], sizes), strict=True), key=lambda pair: pair[0])
    ]
