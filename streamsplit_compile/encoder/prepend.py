"""Puts a front end's graph before an encoder's, as if both had been exported together."""

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
"""Name of its submodule; underscores are added if the encoder already has one of this name."""


@dataclass(frozen=True)
class PrependedFrontEnd:
    """A front end for an encoder that takes features."""

    module: nn.Module
    """(batch, window_samples) float32 -> (batch, *shape) float32."""
    sample_rate: int
    """Hz."""
    window_samples: int
    shape: tuple[int, ...]
    """Shape of one window's features, without the batch axis."""
    details: dict[str, Any]
    """Its settings, for people."""


def prepend(module: fx.GraphModule, front_end: PrependedFrontEnd) -> None:
    """Change a graph that takes a front end's features so that it takes the windows (batch, window_samples) instead.

    The front end becomes a submodule, so cuts are named after its modules; the encoder's parameters keep their names.
    """
    (taken,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    name = PREPENDED
    while hasattr(module, name):
        name += "_"
    front = _exported(front_end, name)
    if hasattr(front, name):  # only if it has tensors of its own
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
    """A module under a name, so that its graph shows where the nodes come from."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, module)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Run the module."""
        made: torch.Tensor = self.get_submodule(self.name)(waveform)
        return made


def _exported(front_end: PrependedFrontEnd, name: str) -> fx.GraphModule:
    """Export a front end."""
    program = exported(_Named(name, front_end.module).eval(), (front_end.window_samples,))
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    make_plain(module)
    make_functional(module)
    return module


def _propagate(module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Set the metadata of some nodes' values, derived from the waveform's."""
    mode = next(node for node in nodes if node.op == "placeholder").meta["val"].fake_mode
    # As torch.export does: without this dispatcher some operators fix the batch to the example's.
    with mode, enable_python_dispatcher(), torch.no_grad():
        for node in nodes:
            if node.op == "get_attr" and "val" in node.meta:
                node.meta["val"] = mode.from_tensor(operator.attrgetter(str(node.target))(module).detach())
            elif node.op == "call_function" and "val" in node.meta:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
                operation: Any = node.target
                node.meta["val"] = operation(*args, **kwargs)
