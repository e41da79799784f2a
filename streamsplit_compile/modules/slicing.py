"""Makes a sub-model: an encoder that keeps some channels, which stand in for those that it leaves out.

With `C` a reader's covariance, `K` the channels kept and `D` those left out, the reader makes of `D` what it
would make of the best linear guess of them from `K` (He et al. 2017, in closed form):

    W_K + W_D M,  M = C[D, K] (C[K, K] + ridge)^-1,  and a constant W_D (mean_D - M mean_K)

Batch statistics are then measured again on windows (`recalibrate`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamsplit_compile.modules.layers import Layer, layers_of
from streamsplit_compile.modules.observation import BATCH, Observation

_RIDGE = 1e-3
"""Of the channels' mean variance."""


def slice_encoder(
    encoder: nn.Module, kept: Mapping[str, Sequence[int]], observed: Observation | None = None
) -> nn.Module:
    """A copy with only the channels in `kept` of the named layers; the rest is replaced if it was observed.

    Without an observation it gives what the encoder gives with the other channels at zero. The layers' names are those
    of `layers_of(encoder)`.
    """
    small: Any = copy.deepcopy(encoder)
    if observed is not None:
        for layer in layers_of(encoder):
            if 0 < len(kept.get(layer.name, ())) < layer.channels:
                for reader in layer.readers:
                    _replace(small, layer, reader, kept[layer.name], observed)
    small.keep_channels(kept)
    made: nn.Module = small.eval()
    return made


@torch.no_grad()
def _replace(encoder: nn.Module, layer: Layer, reader: str, kept: Sequence[int], observed: Observation) -> None:
    module: Any = encoder.get_submodule(reader)
    own = torch.tensor(kept)
    out = torch.tensor(sorted(set(range(layer.channels)) - set(kept)))
    mean, covariance = observed.means[reader], observed.covariances[reader]
    among = covariance[own][:, own]
    ridge = _RIDGE * among.diagonal().mean() * torch.eye(len(own), dtype=among.dtype)
    guess = torch.linalg.solve(among + ridge, covariance[own][:, out]).T
    missing = module.weight[:, out].double()
    constant = missing.flatten(2).sum(2) if missing.ndim > 2 else missing
    constant = (constant @ (mean[out] - guess @ mean[own])).float()
    module.weight[:, own] += torch.einsum("od...,dk->ok...", missing, guess).float()
    if module.bias is not None:
        module.bias += constant
    else:
        norm: Any = encoder.get_submodule(layer.norm)
        norm.running_mean -= constant


@torch.no_grad()
def recalibrate(encoder: nn.Module, windows: Tensor) -> None:
    """Measure the running statistics of all batch norms with scales again, on windows (n, samples)."""
    norms = [norm for norm in encoder.modules() if isinstance(norm, nn.BatchNorm2d) and norm.affine]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    for batch in torch.split(windows, BATCH):
        encoder(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
