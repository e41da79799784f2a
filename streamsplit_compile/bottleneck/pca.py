"""Bottlenecks in closed form: principal components of an activation's patches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from streamsplit_compile.bottleneck.block import Bottleneck, Layout, padded_image


def fit_pca(layout: Layout, activations: Iterable[Tensor], channels: int) -> tuple[Bottleneck, float]:
    """Fit a block whose channels are the first principal components, the largest first, with a step of 1.

    `activations` are batches (n, ...) float32. Also returns the standard deviation of the first component. The largest
    weight of each component is made positive, so that every fit gives the same components.
    """
    count, total = 0, torch.zeros(layout.patch_values, dtype=torch.float64)
    products = torch.zeros(layout.patch_values, layout.patch_values, dtype=torch.float64)
    for batch in activations:
        image = padded_image(layout, batch)
        patches = functional.unfold(image, layout.patch, stride=layout.patch).transpose(1, 2).flatten(0, 1).double()
        count, total = count + len(patches), total + patches.sum(0)
        products += patches.T @ patches
    mean = total / count
    variances, components = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    chosen = components.flip(1)[:, :channels]
    places = chosen.abs().argmax(0)
    chosen = chosen * chosen[places, torch.arange(chosen.shape[1])].sign()
    block = Bottleneck(layout, channels)
    with torch.no_grad():
        block.analysis.weight.copy_(chosen.T.reshape(block.analysis.weight.shape))
        assert block.analysis.bias is not None
        block.analysis.bias.copy_(-(mean @ chosen))
        block.synthesis.weight.copy_(chosen)
        block.synthesis.bias.copy_(mean)
    return block.eval(), float(variances[-1].clamp_min(0).sqrt())


def with_step(block: Bottleneck, step: float) -> Bottleneck:
    """The same block with its components divided by `step`, so that a latent's value of 1 is one step."""
    scaled = Bottleneck(block.layout, block.analysis.out_channels)
    weights = block.state_dict()
    factors = {"analysis.weight": 1 / step, "analysis.bias": 1 / step, "synthesis.weight": step}
    scaled.load_state_dict({name: value * factors.get(name, 1.0) for name, value in weights.items()})
    return scaled.eval()
