"""A sub-model of the whole encoder that a group of devices runs: where its values belong, and what of it trains.

Its readers' weights are the whole encoder's plus a correction, by which the channels that stay stand in for the others
(`streamsplit_compile.modules.slicing`). The correction is fixed with the choice of channels, so that a value that
nobody has trained is the same in all steps, and need not be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamsplit_compile.modules.layers import Layer, channels_in, layers_of
from streamsplit_compile.modules.observation import Observation
from streamsplit_compile.modules.slicing import slice_encoder

Kept = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Plan:
    """The choice of a sub-model, the same in all steps."""

    kept: Kept
    """The channels that each layer keeps."""
    trained: Mapping[str, tuple[int, ...]]
    """The groups of each layer that train, among those it keeps."""
    corrections: Mapping[str, Tensor]
    """What is added to the kept columns of each reader, and to the shift of a layer's norm, by name of the tensor."""


def plan(encoder: nn.Module, kept: Kept, trained: Mapping[str, tuple[int, ...]], observed: Observation) -> Plan:
    """Plan a sub-model of an encoder that was observed."""
    plain, small = slice_encoder(encoder, kept).state_dict(), slice_encoder(encoder, kept, observed).state_dict()
    changed = {name: small[name] - plain[name] for name in plain if not torch.equal(small[name], plain[name])}
    return Plan(kept, trained, changed)


@torch.no_grad()
def variant(encoder: nn.Module, of: Plan) -> nn.Module:
    """The sub-model of today's encoder, in eval mode."""
    small = slice_encoder(encoder, of.kept)
    state = small.state_dict()
    for name, correction in of.corrections.items():
        state[name] += correction
    return small


def train_only(small: nn.Module, encoder: nn.Module, of: Plan) -> list[nn.Parameter]:
    """Let only the rows and columns of the groups that train have gradients; returns the parameters that have them."""
    found = []
    small.requires_grad_(False)
    for layer in layers_of(encoder):
        if of.trained.get(layer.name):
            own = places(of, layer)
            for name, axis in tensors_of(encoder, layer):
                if isinstance(parameter := _member(small, name), nn.Parameter):
                    shape = [1] * parameter.ndim
                    shape[axis] = parameter.shape[axis]
                    mask = torch.zeros(parameter.shape[axis]).index_fill(0, own, 1.0).reshape(shape)
                    parameter.requires_grad_().register_hook(  # type: ignore[no-untyped-call]
                        lambda gradient, mask=mask: gradient * mask
                    )
                    found.append(parameter)
    return found


def places(of: Plan, layer: Layer) -> Tensor:
    """Where the channels that train stand among those that the layer keeps."""
    kept = {channel: place for place, channel in enumerate(of.kept.get(layer.name, range(layer.channels)))}
    return torch.tensor([kept[channel] for channel in channels_in(layer, of.trained[layer.name])], dtype=torch.int64)


def tensors_of(encoder: nn.Module, layer: Layer) -> list[tuple[str, int]]:
    """The tensors with one row (axis 0) or one column (axis 1) for each channel of a layer, by name."""
    rows = [
        (f"{writer}.{name}", 0)
        for writer in layer.writers
        for name, tensor in encoder.get_submodule(writer).state_dict().items()
        if tensor.ndim
    ]
    return rows + [(f"{reader}.weight", 1) for reader in layer.readers]


@torch.no_grad()
def placed(own: Mapping[str, Tensor], encoder: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """The values of a sub-model's `state_dict` in the shapes of the whole encoder's, NaN where it has none.

    Whole numbers, such as counters, are left out.
    """
    axes = {
        name: (axis, kept[layer.name])
        for layer in layers_of(encoder)
        if layer.name in kept
        for name, axis in tensors_of(encoder, layer)
    }
    found = {}
    for name, tensor in encoder.state_dict().items():
        if not tensor.is_floating_point():
            continue
        found[name] = torch.full_like(tensor, torch.nan)
        if name in own:
            axis, channels = axes.get(name, (0, range(len(tensor)) if tensor.ndim else ()))
            if tensor.ndim:
                found[name].index_copy_(axis, torch.tensor(channels, dtype=torch.int64), own[name])
            else:
                found[name].copy_(own[name])
    return found


def values_to_send(new: Mapping[str, Tensor], held: Sequence[Mapping[str, Tensor]]) -> int:
    """How many values of a sub-model, as `placed`, are the same in none of those that a device holds."""
    count = 0
    for name, tensor in new.items():
        missing = ~torch.isnan(tensor)
        for one in held:
            missing &= one[name] != tensor
        count += int(missing.sum())
    return count


def _member(module: nn.Module, name: str) -> object:
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last)
