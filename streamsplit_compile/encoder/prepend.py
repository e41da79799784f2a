"""An encoder's graph with a front end's in front of it, as if both had been exported together."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher

from streamsplit_compile.encoder.functional import make_functional
from streamsplit_compile.encoder.plain_graph import make_plain
from streamsplit_compile.encoder.tracing import exported

PREPENDED = "front_end"
"""The submodule that it becomes; with lines behind it where the encoder has one of this name."""


@dataclass(frozen=True)
class PrependedFrontEnd:
    """What is put in front of an encoder that takes features."""

    module: nn.Module
    """(batch, window_samples) float32 -> (batch, *shape) float32."""
    sample_rate: int
    """Hz."""
    window_samples: int
    shape: tuple[int, ...]
    """Of the features of one window, without the batch axis."""
    details: dict[str, Any]
    """For people."""


def prepend(module: fx.GraphModule, front_end: PrependedFrontEnd) -> None:
    """Let a graph that takes a front end's features take the window (batch, window_samples) that they are made from.

    The front end becomes a submodule, after whose modules cuts are named; parameters of the encoder keep their names.
    """
    (taken,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    name = PREPENDED
    while hasattr(module, name):
        name += "_"
    front = _exported(front_end, name)
    if hasattr(front, name):  # where it has tensors of its own
        module.add_module(name, front.get_submodule(name))
    features, users = taken.meta["val"], list(taken.users)
    with features.fake_mode:
        taken.meta["val"] = torch.empty(features.shape[0], front_end.window_samples)
    copied: dict[fx.Node, fx.Node] = {}
    with module.graph.inserting_before(taken.next):
        for node in front.graph.nodes:
            if node.op == "output":
                (made,) = (copied[value] for value in node.all_input_nodes)
            else:
                copied[node] = taken if node.op == "placeholder" else module.graph.node_copy(node, copied.__getitem__)
    _propagate(module, list(copied.values()))
    for user in users:
        user.replace_input_with(taken, made)
    module.graph.lint()
    module.recompile()


class _Named(nn.Module):
    """A module under a name, so that its graph says where its nodes come from."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, module)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """What the module makes."""
        made: torch.Tensor = self.get_submodule(self.name)(waveform)
        return made


def _exported(front_end: PrependedFrontEnd, name: str) -> fx.GraphModule:
    """The graph of a front end."""
    program = exported(_Named(name, front_end.module).eval(), (front_end.window_samples,))
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    make_plain(module)
    make_functional(module)
    return module


def _propagate(module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """What the value of each of some nodes looks like, worked out from the waveform's."""
    mode = next(node for node in nodes if node.op == "placeholder").meta["val"].fake_mode
    # As torch.export does: without its dispatcher some operators settle on the batch of the example.
    with mode, enable_python_dispatcher(), torch.no_grad():
        for node in nodes:
            if node.op == "get_attr" and "val" in node.meta:
                node.meta["val"] = mode.from_tensor(operator.attrgetter(str(node.target))(module).detach())
            elif node.op == "call_function" and "val" in node.meta:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
                operation: Any = node.target
                node.meta["val"] = operation(*args, **kwargs)
