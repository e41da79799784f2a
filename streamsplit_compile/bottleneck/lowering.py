"""Lowers a small module that follows a cut, such as a bottleneck's encoder, to a file that a device runs."""

from __future__ import annotations

from torch import fx, nn

from streamsplit_compile.encoder.tracing import exported
from streamsplit_compile.lowering import artifact_formats
from streamsplit_compile.lowering.artifact_formats import Format


def lower_small(name: Format, block: nn.Module, shape: tuple[int, ...]) -> bytes:
    """The file, in float32, for one activation of `shape`. Raises MissingExtra or UsageError."""
    module = exported(block.eval(), shape[1:]).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = tuple(output.args[0])  # the tensor itself, as blocks return it
    module.recompile()
    return artifact_formats.lower(name, module, shape, {}).model
