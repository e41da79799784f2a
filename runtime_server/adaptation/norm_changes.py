"""How normalisation layers differ from the compiled ones: a factor and a shift for each channel.

A layer that gave `y` gives `scale * y + shift`: its own scale and shift become `scale * gamma` and
`scale * beta + shift`. Factors are positive, so that a device can change a convolution that a layer was folded into,
whatever its precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.graphs.onnx_norms import norms_of
from runtime_edge.formats.records.adaptation import MAX_SCALE, AdaptedLayer
from runtime_server.adaptation.classifier import norm_layers

_VARIANT = "onnx-fp32"
_MAX_SHIFT = float(np.finfo(np.float16).max)
Tensors = Mapping[str, npt.NDArray[Any]]


def layer_blocks(bundle: Bundle, segments: Sequence[fx.GraphModule], start: int = 0) -> dict[str, str]:
    """The block of each layer behind a cut that can be adapted: its file says where it is, and no other block has it.

    Raises BundleError or BackendError for a bundle without such files.
    """
    found: dict[str, str] = {}
    several = set[str]()
    for block, segment in zip(bundle.manifest.info.blocks, segments, strict=True):
        noted = norms_of(bundle.block_bytes(block, _VARIANT), f"{bundle.path}: {block}")
        for name in norm_layers(segment):
            several |= {name} & found.keys()
            if name in noted and segment.get_parameter(f"{name}.weight").dim() == 1:
                found[name] = block
    behind = bundle.manifest.info.blocks[start:]
    return {name: block for name, block in found.items() if name not in several and block in behind}


class NormChanges:
    """The layers of one encoder that is trained, and what they were when they were compiled.

    Args:
        encoder: holds the layers; it must have the compiled weights.
        blocks: the block of each layer.
        prefix: what its parameters' names have in front of the layers' names.
    """

    def __init__(self, encoder: nn.Module, blocks: Mapping[str, str], prefix: str = "") -> None:
        self._blocks = blocks
        self._now = {
            name: (encoder.get_parameter(f"{prefix}{name}.weight"), encoder.get_parameter(f"{prefix}{name}.bias"))
            for name in blocks
        }
        self._compiled = {
            name: (scale.detach().clone(), shift.detach().clone()) for name, (scale, shift) in self._now.items()
        }

    def project(self) -> None:
        """Bring every channel back to where a device can follow: its factor within [1/64, 64], 1 if it was 0."""
        with torch.no_grad():
            for name, (scale, _) in self._now.items():
                compiled, _ = self._compiled[name]
                scale.copy_(compiled * _factor(scale, compiled))

    def rounded(self) -> tuple[AdaptedLayer, ...]:
        """What changed, in float16; layers that did not are left out."""
        found = []
        for name, (scale, shift) in self._now.items():
            compiled_scale, compiled_shift = self._compiled[name]
            factor = _factor(scale.detach(), compiled_scale).half()
            added = (shift.detach() - factor.float() * compiled_shift).clamp(-_MAX_SHIFT, _MAX_SHIFT).half()
            if bool((factor != 1).any() or (added != 0).any()):
                found.append(
                    AdaptedLayer(block=self._blocks[name], name=name, scale=_bytes(factor), shift=_bytes(added))
                )
        return tuple(found)

    def load(self, layers: Iterable[AdaptedLayer]) -> None:
        """Put the layers where an adaptation has them; those that it does not name become as compiled."""
        adapted = {layer.name: layer.arrays() for layer in layers}
        with torch.no_grad():
            for name, (scale, shift) in self._now.items():
                compiled_scale, compiled_shift = self._compiled[name]
                factor, added = map(torch.from_numpy, adapted[name]) if name in adapted else (torch.ones(1), 0.0)
                scale.copy_(factor * compiled_scale)
                shift.copy_(factor * compiled_shift + added)


def adapted_tensors(tensors: Tensors, layers: Iterable[AdaptedLayer]) -> dict[str, npt.NDArray[Any]]:
    """An encoder's compiled parameters, by name, as an adaptation changes them.

    Raises KeyError or ValueError for a layer that the encoder lacks or that has other channels.
    """
    changed = dict(tensors)
    for layer in layers:
        factor, added = layer.arrays()
        scale, shift = f"{layer.name}.weight", f"{layer.name}.bias"
        changed[scale] = (factor * tensors[scale]).astype(np.float32)
        changed[shift] = (factor * tensors[shift] + added).astype(np.float32)
    return changed


def _factor(scale: Tensor, compiled: Tensor) -> Tensor:
    """(channels,) within [1/64, 64]; a channel that was compiled as 0 keeps 1."""
    silent = compiled == 0
    found = scale / torch.where(silent, 1.0, compiled)
    return torch.where(silent, 1.0, found.clamp(1 / MAX_SCALE, MAX_SCALE))


def _bytes(values: Tensor) -> bytes:
    return values.numpy().astype("<f2").tobytes()
