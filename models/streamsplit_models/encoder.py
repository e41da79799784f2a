"""What every encoder shares: the contract, and the small modules at its two ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from streamsplit_models.front_end import FrontEnd, Waveform

MAX_EMBEDDING_DIM = 8192


@dataclass(frozen=True)
class InnerLayer:
    """The inner channels of one block. All names are those of modules in the whole encoder."""

    name: str
    channels: int
    writers: tuple[str, ...]
    """Modules with one row for each channel in all their tensors."""
    readers: tuple[str, ...]
    """Convolutions and linear layers with one column for each channel; the last one makes the block's output."""
    norm: str
    """The batch norm that follows the last reader."""
    skippable: bool
    """Whether the block can be left out as a whole: its input and output have one shape, and it adds to its input."""


@runtime_checkable
class HasInner(Protocol):
    """A block with channels that only itself reads."""

    def inner(self) -> InnerLayer | None:
        """Those channels, with names relative to the block; None if they are also its input."""


class Encoder(nn.Module):
    """Waveform (batch, window_samples) float32 in [-1, 1] -> unit-norm embedding (batch, embedding_dim).

    Each stage of an encoder is a module of its own, because cuts are named after module paths; `stages` lists
    their names in order. Raises ValueError if `embedding_dim` is not a valid size.
    """

    stages: tuple[str, ...] = ()

    def __init__(self, front_end: FrontEnd | Waveform, embedding_dim: int) -> None:
        whole = isinstance(embedding_dim, int) and not isinstance(embedding_dim, bool)
        if not whole or not 1 <= embedding_dim <= MAX_EMBEDDING_DIM:
            raise ValueError(
                f"embedding_dim is {embedding_dim!r}, must be a whole number from 1 to {MAX_EMBEDDING_DIM}"
            )
        super().__init__()
        self.front_end = front_end
        self.embedding_dim = embedding_dim

    @property
    def sample_rate(self) -> int:
        """Hz of the waveform."""
        return self.front_end.sample_rate

    @property
    def window_samples(self) -> int:
        """Samples of one window."""
        return self.front_end.window_samples

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, window_samples) float32 -> (batch, embedding_dim) float32 of unit norm."""
        x = waveform
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x

    def inner_layers(self) -> tuple[InnerLayer, ...]:
        """The blocks whose inner channels can be left out, in order."""
        return tuple(
            replace(
                layer,
                name=name,
                writers=tuple(f"{name}.{writer}" for writer in layer.writers),
                readers=tuple(f"{name}.{reader}" for reader in layer.readers),
                norm=f"{name}.{layer.norm}",
            )
            for name, block in self.named_modules()
            if isinstance(block, HasInner) and (layer := block.inner()) is not None
        )

    def keep_channels(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Leave out all channels of the named layers but those in `kept`, see the function `keep_channels`.

        What is left gives what the whole encoder gives with the other channels at zero after the activation, before
        squeeze-and-excitation: batch norm would turn a zero before it into something else. Skipped blocks are no
        longer stages.
        """
        keep_channels(self, self.inner_layers(), kept)
        self.stages = tuple(stage for stage in self.stages if stage not in kept or kept[stage])


def input_norm() -> nn.BatchNorm2d:
    """Bring any front end's image to unit scale: one channel, hence one mean and one deviation."""
    return nn.BatchNorm2d(1, affine=False)


class GlobalAveragePool(nn.Module):
    """(batch, channels, mels, frames) -> (batch, channels), mean over mels and frames."""

    def forward(self, image: Tensor) -> Tensor:
        """Average the last two axes."""
        return image.mean(dim=(2, 3))


class GlobalMaxPool(nn.Module):
    """(batch, channels, mels, frames) -> (batch, channels), maximum over mels and frames."""

    def forward(self, image: Tensor) -> Tensor:
        """Maximum over the last two axes."""
        return image.amax(dim=(2, 3))


class Normalize(nn.Module):
    """(batch, features) -> the same direction with unit L2 norm; a zero vector stays zero."""

    def forward(self, features: Tensor) -> Tensor:
        """Divide each row by its norm."""
        return features / features.square().sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()


def keep_channels(encoder: nn.Module, layers: Sequence[InnerLayer], kept: Mapping[str, Sequence[int]]) -> None:
    """Leave out all channels of the named layers but those in `kept`, in that order; a layer without any is skipped.

    A skipped block becomes an identity. Raises ValueError naming the layer for one that is unknown or cannot be
    skipped, and for indices that are no choice of its channels.
    """
    known = {layer.name: layer for layer in layers}
    for name, indices in kept.items():
        if name not in known:
            raise ValueError(f"inner: no layer {name!r}; the encoder has {', '.join(known)}")
        layer = known[name]
        if len(set(indices)) != len(indices) or not all(0 <= index < layer.channels for index in indices):
            raise ValueError(f"inner: {name}: not a choice of its {layer.channels} channels")
        if not indices and not layer.skippable:
            raise ValueError(f"inner: {name}: cannot be skipped, because its input and output differ; keep a channel")
        _keep(encoder, layer, torch.tensor(indices, dtype=torch.int64))


def widths_kept(layers: Sequence[InnerLayer], inner: Mapping[str, int] | None) -> dict[str, Sequence[int]]:
    """The first channels of each layer, as `keep_channels` takes them. Raises ValueError for a width that is none."""
    known = {layer.name: layer.channels for layer in layers}
    if not isinstance(inner or {}, Mapping):
        raise ValueError(f"inner is {inner!r}, must map the names of layers to their numbers of channels")
    for name, width in (inner or {}).items():
        if isinstance(width, bool) or not isinstance(width, int) or not 0 <= width <= known.get(name, width):
            raise ValueError(f"inner: {name}: {width!r} is not a whole number from 0 to {known.get(name)}")
    return {name: range(width) for name, width in (inner or {}).items()}


def _keep(encoder: nn.Module, layer: InnerLayer, indices: torch.Tensor) -> None:
    if not len(indices):
        parent, _, last = layer.name.rpartition(".")
        encoder.get_submodule(parent).register_module(last, nn.Identity())
        return
    for name in layer.writers:
        module = encoder.get_submodule(name)
        for tensor in _tensors(module):
            tensor.data = tensor.data.index_select(0, indices)
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        counts = ("out_channels", "out_features", "num_features", *(("groups", "in_channels") if depthwise else ()))
        _set(module, counts, len(indices))
    for name in layer.readers:
        module = encoder.get_submodule(name)
        assert isinstance(module.weight, nn.Parameter)
        module.weight.data = module.weight.data.index_select(1, indices)
        _set(module, ("in_channels", "in_features"), len(indices))


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """A module's parameters and running statistics, without counters."""
    every = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in every if tensor.ndim]


def _set(module: nn.Module, names: Sequence[str], count: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, count)
