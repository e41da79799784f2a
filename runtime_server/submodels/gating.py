"""Multiplies the groups of channels inside an encoder's blocks by factors: with zeros, it is a sub-model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from streamsplit_compile.modules.layers import Layer, groups_of, layers_of


@contextmanager
def gated(encoder: nn.Module, factors: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, the inner channels of the named layers are multiplied by factors, just before they are read.

    `factors` of a layer are (groups,) float32, or (windows, groups) for windows that are given together. Factors of 0
    and 1 give exactly what a sub-model without the channels at 0 gives (`slice_encoder` without an observation).
    Raises UsageError if the encoder has no layers, KeyError for a layer that it has not.
    """
    layers = {layer.name: layer for layer in layers_of(encoder)}
    hooks = [
        encoder.get_submodule(reader).register_forward_pre_hook(
            lambda _module, inputs, wide=wide: (inputs[0] * wide.reshape(*wide.shape, *[1] * (inputs[0].ndim - 2)),)
        )
        for name, factor in factors.items()
        for wide in [of_channels(layers[name], factor)]
        for reader in layers[name].readers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def of_channels(layer: Layer, values: Tensor) -> Tensor:
    """Values (groups,) or (windows, groups) of a layer, repeated for each channel: (1 or windows, channels)."""
    sizes = torch.tensor([len(group) for group in groups_of(layer)])
    rows = values if values.ndim == 2 else values[None]
    return rows.repeat_interleave(sizes, 1)
