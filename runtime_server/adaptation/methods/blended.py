"""Blended statistics: batch norms also follow the mean and variance of what is heard (docs/method.md, section 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.methods.adaptation_method import Method

SHARE = 0.1
"""Of a batch's statistics in the next ones; the rest are the ones before."""


@dataclass
class _Layer:
    """A layer, with the scale and shift that it began with, and its blended mean and variance, all (channels,)."""

    scale: nn.Parameter
    shift: nn.Parameter
    begun: tuple[Tensor, Tensor]
    blended: tuple[Tensor, Tensor] | None = None

    def blend(self, heard: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> None:
        """Mix in the statistics of what the layer is given (n, channels, ...), and change scale and shift so that with
        the compiled `mean` and `variance` it gives what it would give with the blended ones.
        """
        untouched = torch.equal(self.scale, self.begun[0]) and torch.equal(self.shift, self.begun[1])
        before = (mean, variance) if untouched or self.blended is None else self.blended
        over = [dim for dim in range(heard.dim()) if dim != 1]
        found = torch.var_mean(heard, over, correction=0)
        now = torch.lerp(before[0], found[1], SHARE), torch.lerp(before[1], found[0], SHARE)
        compiled, earlier, later = (torch.sqrt(each + epsilon) for each in (variance, before[1], now[1]))
        own_scale = self.scale * earlier / compiled
        own_shift = self.shift - own_scale * (mean - before[0]) / earlier
        self.scale.copy_(own_scale * compiled / later)
        self.shift.copy_(own_shift + own_scale * (mean - now[0]) / later)
        self.blended = now


class _Blending(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, each batch norm of these layers, by the address of its scale, blends before it runs."""

    def __init__(self, layers: Mapping[int, _Layer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers = layers

    def __torch_dispatch__(
        self, func: Any, _: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.native_batch_norm.default and args[1] is not None:
            layer = self._layers.get(args[1].data_ptr())
            if layer is not None:
                layer.blend(args[0], args[3], args[4], args[7])
        return func(*args, **(kwargs or {}))


class Blended:
    """Before each step of a method, every batch norm's statistics become `0.9 s + 0.1 s(batch)`, of mean and variance.

    A device keeps its statistics: the difference goes into scale and shift, which it is sent anyway. If the method has
    put a layer back to where it began, its statistics begin anew as well.
    """

    def __init__(self, method: Method, classifier: Classifier) -> None:
        self._method, self._classifier = method, classifier
        parameters = classifier.adaptable()
        names = [name.removesuffix(".weight") for name in parameters if name.endswith(".weight")]
        pairs = [(parameters[f"{name}.weight"], parameters[f"{name}.bias"]) for name in names]
        self._layers = [
            _Layer(scale, shift, (scale.detach().clone(), shift.detach().clone())) for scale, shift in pairs
        ]

    def update(self, windows: Tensor) -> None:
        """See the interface."""
        with torch.no_grad(), _Blending({layer.scale.data_ptr(): layer for layer in self._layers}):
            self._classifier(windows)
        self._method.update(windows)
