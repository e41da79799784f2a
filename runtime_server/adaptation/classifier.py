"""An encoder with its head, of which only the normalisation layers can be trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.head import Head

_NORMS = {"batch_norm": (1, 2), "layer_norm": (2, 3), "group_norm": (2, 3), "instance_norm": (1, 2)}
"""Names of operators, with the places of scale and shift among their arguments."""


class Classifier(nn.Module):
    """Logits of labels from windows.

    Args:
        encoder: maps (n, samples) to (n, d); its norms, which are in graphs, keep their statistics. It is changed:
            only these layers have gradients, and convolutions run channels-last, which takes 0.73 of the time.
        head: its scores are the softmax of these logits, with its temperature.
        layers: names in `norm_layers(encoder)` that may change; None: all.
        places: of the head's labels, which to answer with, in this order; None: all.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: Head,
        layers: Collection[str] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        """Raises UsageError for a head whose labels exclude nothing, because their entropy says nothing."""
        super().__init__()
        if head.scores_by != "softmax":
            raise UsageError("head: its scores are not of one label among others; adaptation needs a softmax head")
        self.encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weight = np.frombuffer(head.weights, "<f4").reshape(len(head.labels), -1) / head.temperature
        bias, chosen = np.frombuffer(head.bias, "<f4") / head.temperature, slice(None) if places is None else places
        self.register_buffer("weight", torch.from_numpy(weight[chosen]))
        self.register_buffer("bias", torch.from_numpy(bias[chosen]))
        for parameter in encoder.parameters():
            parameter.requires_grad_(False)
        for name in norm_layers(encoder) if layers is None else layers:
            for part in ("weight", "bias"):
                encoder.get_parameter(f"{name}.{part}").requires_grad_(True)

    def forward(self, windows: Tensor) -> Tensor:
        """Logits (n, labels) of windows (n, samples)."""
        return self.encoder(windows) @ self.weight.T + self.bias  # type: ignore[no-any-return]

    def adaptable(self) -> dict[str, nn.Parameter]:
        """The scales and shifts, by name."""
        return {name: value for name, value in self.encoder.named_parameters() if value.requires_grad}


def norm_layers(encoder: nn.Module) -> list[str]:
    """The normalisation layers with a scale and a shift in its graphs, in the order in which they run, each once."""
    graphs = [(f"{path}." if path else "", part) for path, part in encoder.named_modules()]
    return list(
        dict.fromkeys(path + name for path, part in graphs if isinstance(part, fx.GraphModule) for name in _names(part))
    )


def _names(graph_module: fx.GraphModule) -> Iterator[str]:
    for node in graph_module.graph.nodes:
        kind = getattr(node.target, "__name__", "").partition(".")[0]
        if node.op != "call_function" or kind not in _NORMS:
            continue
        parts = [node.args[place] for place in _NORMS[kind] if place < len(node.args)]
        targets = [str(part.target) for part in parts if isinstance(part, fx.Node) and part.op == "get_attr"]
        if len(targets) == 2 and targets[0].removesuffix(".weight") == targets[1].removesuffix(".bias"):
            yield targets[0].removesuffix(".weight")
