"""L_SW: sliced Wasserstein-2 distance from the batch to the uniform law on the sphere (docs/method.md, section 5).

The distance is sqrt(2/d) for a collapsed batch, and only the sampling error for a uniform one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime_server.training.losses.uniform import uniform_on_sphere

PROJECTIONS = 50
_TINY = 1e-12  # below this squared distance, the root's slope grows without bound; the gradient is zero instead


def sliced_wasserstein(first: Tensor, second: Tensor, directions: Tensor) -> Tensor:
    """Distance between two samples [n, d] over unit `directions` [M, d]; a scalar, differentiable in both.

    The root of the mean, over directions and ranks, of the squared difference of sorted projections.
    """
    gaps = (first @ directions.T).sort(dim=0).values - (second @ directions.T).sort(dim=0).values
    return gaps.square().mean().clamp_min(_TINY).sqrt()


def sliced_wasserstein_to_uniform(
    embeddings: Tensor, generator: torch.Generator, projections: int = PROJECTIONS
) -> Tensor:
    """Distance between unit `embeddings` [n, d] and as many fresh uniform samples, over fresh directions."""
    target = uniform_on_sphere(len(embeddings), embeddings, generator)
    return sliced_wasserstein(embeddings, target, uniform_on_sphere(projections, embeddings, generator))
