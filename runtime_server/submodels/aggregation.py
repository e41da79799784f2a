"""Brings what sub-models have learnt into the whole encoder, weighted by importance.

With `w_ik` the values of group i in the sub-model of the group of devices k (docs/method.md, section 10):

    w_i = sum over k of a_k w_ik,   a_k = importance_k[i] / sum of importance[i],   k: those in which the group trained

Groups that trained nowhere stay, and so do all other values: the stem, norms behind readers, the projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime_server.submodels.trained_variants import Plan, placed, tensors_of
from streamsplit_compile.modules.layers import groups_of, layers_of


@dataclass(frozen=True)
class Contribution:
    """A trained sub-model."""

    small: nn.Module
    plan: Plan
    importance: Mapping[str, Tensor]
    """(groups,) >= 0 of each layer, for those who trained it."""


@torch.no_grad()
def aggregate(encoder: nn.Module, contributions: Sequence[Contribution]) -> None:
    """Change the whole encoder in place. Running statistics are left alone; measure them again afterwards."""
    weighted, totals = _zeros(encoder), _zeros(encoder)
    layers = [(layer, tensors_of(encoder, layer)) for layer in layers_of(encoder)]
    parameters = dict(encoder.named_parameters())
    for one in contributions:
        state = {name: value - one.plan.corrections.get(name, 0) for name, value in one.small.state_dict().items()}
        values = placed(state, encoder, one.plan.kept)
        for layer, tensors in layers:
            weight = torch.zeros(layer.channels)
            for group in one.plan.trained.get(layer.name, ()):
                weight[list(groups_of(layer)[group])] = max(float(one.importance[layer.name][group]), 1e-12)
            for name, axis in tensors:
                if name in parameters:
                    own = weight.reshape([-1 if place == axis else 1 for place in range(values[name].ndim)])
                    weighted[name] += torch.where(own > 0, own * values[name], 0.0)
                    totals[name] += own
    for name, parameter in parameters.items():
        changed = totals[name] > 0
        parameter.copy_(torch.where(changed, weighted[name] / totals[name].clamp(min=1e-30), parameter))


def _zeros(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(parameter) for name, parameter in encoder.named_parameters()}
