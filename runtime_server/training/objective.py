"""The loss of a batch that lies at several cuts: what is embedded, what counts as the same, what as different."""

from __future__ import annotations

from collections.abc import Sequence

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
from streamsplit_compile.encoder.segment import run_segments

_MIN_NORM = 1e-5
_LAYOUT = torch.channels_last  # as the trainer keeps its weights


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
    """Embeddings, `width` wide, of two views of each window of `groups`; with `two` false of one, twice.

    With `keys` it is these that embed the second view, without gradients. Of more than `in_memory` windows the backward
    pass computes so many at a time again, instead of keeping all that is between the blocks.
    """
    first, second = [torch.zeros(0, width)], [torch.zeros(0, width)]
    windows, chains = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    most = in_memory if in_memory is not None and sum(len(group) for group in groups) > in_memory else None
    for group in groups:
        views = _views(group, segments, generator, config, two, keys, most)
        first.append(views[: len(group)])
        second.append(views[-len(group) :])
        windows.append(group.windows)
        chains.append(group.chains)
    return EmbeddingBatch(torch.cat(first), torch.cat(second), None, torch.cat(windows), torch.cat(chains))


def batch_loss(batch: EmbeddingBatch, loss: HybridLoss) -> tuple[Tensor, dict[str, float]]:
    """The hybrid loss (docs/method.md, section 5) of a batch, and its parts.

    A window's positives are its own other view and the other views of its neighbours in time, whatever cut each of
    them came from: two views of a late activation are nearly the same, and teach little.
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

    None while it is cold, and when a window has no direction: then the loss says what is wrong.
    """
    anchors = z.detach()
    directed = bool((anchors.norm(dim=1) > _MIN_NORM).all())
    if count == 0 or mixture.cold or not directed or not len(anchors):
        return None
    rng = np.random.default_rng(int(torch.randint(1 << 31, (1,), generator=generator)))
    return torch.from_numpy(mixture.sample_negatives(anchors.numpy(), count, rng))


def first_trainable(segments: Sequence[fx.GraphModule]) -> int:
    """How many blocks at the front hold nothing that is trained: a front end, for instance."""
    for number, segment in enumerate(segments):
        if any(parameter.requires_grad for parameter in segment.parameters()):
            return number
    return len(segments)


def _views(
    group: WindowGroup,
    segments: Sequence[fx.GraphModule],
    generator: torch.Generator,
    config: AugmentConfig,
    two: bool,
    keys: Sequence[fx.GraphModule] | None,
    most: int | None,
) -> Tensor:
    """Embeddings (2n, d) of two views of each window, or (n, d) of one.

    Blocks that never change run first: frequencies can be masked in a spectrum, and it is made once for both views.
    """
    start = max(group.cut, min(first_trainable(segments), len(segments) - 1))
    activations = group.activations.flatten(0, 1).float()
    with torch.no_grad():
        activations = run_segments(segments[group.cut : start], activations)
    drawn = [augment(activations, generator, config, waveform=start == 0) for _ in range(1 + two)]
    if keys is None or not two:
        return _embedded(segments[start:], torch.cat(drawn), most)
    with torch.no_grad():
        second = _embedded(keys[start:], drawn[1], most)
    return torch.cat([_embedded(segments[start:], drawn[0], most), second])


def _embedded(segments: Sequence[fx.GraphModule], views: Tensor, most: int | None) -> Tensor:
    """Embeddings of views; with `most`, computed so many at a time, and once more in the backward pass."""
    if views.ndim == 4:
        views = views.contiguous(memory_format=_LAYOUT)
    if most is None:
        return run_segments(segments, views)
    parts = [
        checkpoint(run_segments, segments, part, use_reentrant=False, preserve_rng_state=False)
        for part in torch.split(views, most)
    ]
    return torch.cat(parts)
