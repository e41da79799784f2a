"""What unlabelled windows tell about the channels inside an encoder's blocks, in one pass forward and backward.

With `u` (channels, positions) a reader's input and `z` the embedding, for a random direction `v` of each window:

    mean, covariance    of u over windows and positions
    effect_c          = sum over positions of (u_c - mean_c) d(v.z) / d(u_c)
    gram              = mean over windows of effect effect^T

So to first order, replacing the channels of a set S by their means moves the embedding by a squared distance of
`sum of gram[c, d] over c, d in S` (Molchanov et al. 2019, without labels: of the embedding instead of a loss).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamsplit_compile.modules.layers import layers_of

BATCH = 32


@dataclass(frozen=True)
class Observation:
    """Statistics over windows, float64."""

    means: Mapping[str, Tensor]
    """(channels,) by reader."""
    covariances: Mapping[str, Tensor]
    """(channels, channels) by reader."""
    grams: Mapping[str, Tensor]
    """(channels, channels) by layer."""


def observe(encoder: nn.Module, windows: Tensor, directions: Tensor | None = None, seed: int = 0) -> Observation:
    """Observe an encoder on windows (n, samples) float32.

    `directions` (k, d) span the changes of the embedding that count, such as the weights of a head; all by default.
    """
    layers, random = layers_of(encoder), torch.Generator().manual_seed(seed)
    readers = [reader for layer in layers for reader in layer.readers]
    sums: dict[str, list[Tensor]] = {reader: [torch.zeros((), dtype=torch.float64)] * 2 for reader in readers}
    products: dict[str, list[tuple[Tensor, Tensor]]] = {reader: [] for reader in readers}
    counts: dict[str, int] = {}
    with _inputs(encoder, readers) as inputs:
        for batch in torch.split(windows, BATCH):
            embeddings: Tensor = encoder(batch.detach().requires_grad_())
            towards = torch.randn(len(batch), _width(embeddings, directions), generator=random)
            towards = towards if directions is None else towards @ directions
            gradients = torch.autograd.grad((embeddings * towards).sum(), [inputs[reader] for reader in readers])
            for reader, gradient in zip(readers, gradients, strict=True):
                value, slope = (_rows(tensor) for tensor in (inputs[reader].detach(), gradient))
                products[reader].append(((value * slope).sum(2).double(), slope.sum(2).double()))
                rows = value.transpose(0, 1).flatten(1)
                found = [rows.sum(1).double(), (rows @ rows.T).double()]
                sums[reader] = [a + b for a, b in zip(sums[reader], found, strict=True)]
                counts[reader] = counts.get(reader, 0) + rows.shape[1]
    means = {reader: total / counts[reader] for reader, (total, _) in sums.items()}
    covariances = {
        reader: squares / counts[reader] - torch.outer(means[reader], means[reader])
        for reader, (_, squares) in sums.items()
    }
    grams = {}
    for layer in layers:
        effects = torch.zeros(len(windows), layer.channels, dtype=torch.float64)
        for reader in layer.readers:
            moved, slope = (torch.cat(parts) for parts in zip(*products[reader], strict=True))
            effects += moved - means[reader] * slope
        grams[layer.name] = effects.T @ effects / len(windows)
    return Observation(means, covariances, grams)


def _rows(tensor: Tensor) -> Tensor:
    """(batch, channels, ...) -> (batch, channels, positions)."""
    return tensor.reshape(*tensor.shape[:2], -1)


def _width(embeddings: Tensor, directions: Tensor | None) -> int:
    return embeddings.shape[1] if directions is None else len(directions)


@contextmanager
def _inputs(encoder: nn.Module, readers: list[str]) -> Iterator[dict[str, Tensor]]:
    """The readers' inputs in the latest pass, (batch, channels, ...), part of the graph of gradients."""
    found: dict[str, Tensor] = {}
    hooks = [
        encoder.get_submodule(name).register_forward_pre_hook(
            lambda _module, inputs, name=name: found.__setitem__(name, inputs[0])
        )
        for name in readers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
