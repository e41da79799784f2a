"""How important each group of channels is, and how far the embedding moves when a layer keeps only some.

A group's importance is the squared distance by which the embedding moves, to first order, when the group is replaced by
its mean: the sum of the layer's gram (`observation`) over its channels. What a layer loses with only its most important
groups is measured at a few sizes, with the channels that stay standing in for the others (`slicing`), and interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit_compile.modules.layers import Layer, channels_in, groups_of, layers_of
from streamsplit_compile.modules.observation import BATCH, Observation, observe
from streamsplit_compile.modules.slicing import slice_encoder

LOSS_WINDOWS = 64
"""The most windows that losses are measured on."""
_SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Sizes at which they are measured."""


@dataclass(frozen=True)
class RankedLayer:
    """The groups of one layer."""

    layer: Layer
    importance: tuple[float, ...]
    """(groups,)."""
    losses: tuple[float, ...] = ()
    """(groups + 1,) mean of 1 - cosine with the whole encoder's embedding if only the most important 0, 1, ... groups
    stay; infinite for none if the layer cannot be skipped."""

    @property
    def ranking(self) -> list[int]:
        """The groups, the most important one first."""
        return [int(group) for group in np.argsort(-np.array(self.importance), kind="stable")]

    def best(self, count: int) -> list[int]:
        """The channels of the most important groups."""
        return channels_in(self.layer, self.ranking[:count])


@dataclass(frozen=True)
class Study:
    """What is known about an encoder from windows, for any number of sub-models."""

    observation: Observation
    layers: tuple[RankedLayer, ...]


def study(encoder: nn.Module, windows: Tensor, directions: Tensor | None = None, seed: int = 0) -> Study:
    """Rank all groups on windows (n, samples) float32, and measure losses; see `observe` for `directions`."""
    observed = observe(encoder, windows, directions, seed)
    heard = windows[:LOSS_WINDOWS]
    whole = embeddings_of(encoder, heard)
    ranked = [RankedLayer(layer, importance(layer, observed.grams[layer.name])) for layer in layers_of(encoder)]
    return Study(
        observed,
        tuple(RankedLayer(one.layer, one.importance, _losses(encoder, one, observed, heard, whole)) for one in ranked),
    )


def study_again(known: Study, encoder: nn.Module, windows: Tensor, seed: int = 0) -> Study:
    """Rank the groups on other windows (n, samples), such as a device's own; the losses stay as they were measured."""
    observed = observe(encoder, windows, seed=seed)
    return Study(
        observed,
        tuple(
            RankedLayer(one.layer, importance(one.layer, observed.grams[one.layer.name]), one.losses)
            for one in known.layers
        ),
    )


def importance(layer: Layer, gram: Tensor) -> tuple[float, ...]:
    """Of each group, from the layer's gram (channels, channels)."""
    return tuple(float(gram[list(group)][:, list(group)].sum()) for group in groups_of(layer))


@torch.inference_mode()
def embeddings_of(encoder: nn.Module, windows: Tensor) -> Tensor:
    """Embeddings (n, d) of windows (n, samples)."""
    return torch.cat([encoder(batch) for batch in torch.split(windows, BATCH)])


def _losses(
    encoder: nn.Module, ranked: RankedLayer, observed: Observation, windows: Tensor, whole: Tensor
) -> tuple[float, ...]:
    groups = len(ranked.importance)
    counts = sorted({max(round(share * groups), share > 0 or not ranked.layer.skippable) for share in _SHARES})
    found = []
    for count in counts:
        small = slice_encoder(encoder, {ranked.layer.name: ranked.best(count)}, observed)
        cosines = torch.nn.functional.cosine_similarity(embeddings_of(small, windows), whole)
        found.append(max(0.0, float(1 - cosines.mean())))
    losses = np.interp(np.arange(groups + 1), [*counts, groups], [*found, 0.0])
    if not ranked.layer.skippable:
        losses[0] = np.inf
    return tuple(losses.tolist())
