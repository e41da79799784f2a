"""Rewrites constructs that exporters fail on; results stay bit-identical.

exportable(segment)     a rewritten copy, or the segment itself if nothing needs rewriting
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def exportable(segment: fx.GraphModule) -> fx.GraphModule:
    """A segment that exporters can lower and that shares the given one's tensors."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    attention = any(node.target is aten.scaled_dot_product_attention.default for node in segment.graph.nodes)
    changed = False
    for node in segment.graph.nodes:
        copy = copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.target is aten.clamp.default and _is_mixed(node):
            copy.args = (copy.args[0], *(float(bound) for bound in _bounds(node)))
            copy.kwargs = {}
            changed = True
        elif attention and node.target is aten.view.default:
            copy.target = aten.reshape.default
        elif node.target is aten.scaled_dot_product_attention.default:
            # Decomposed attention returns another memory layout than the fused one, on which later views would fail.
            copies[node] = graph.call_function(aten.clone.default, (copy,), {"memory_format": torch.contiguous_format})
            copies[node].meta = dict(copy.meta)
            changed = True
    if not changed:
        return segment
    graph.lint()
    result = fx.GraphModule(segment, graph)
    result.meta.update(segment.meta)
    return result


def _is_mixed(clamp: fx.Node) -> bool:
    """Whether a clamp of floats has a float for one bound and an integer for the other."""
    return {type(bound) for bound in _bounds(clamp)} == {int, float} and clamp.meta["val"].is_floating_point()


def _bounds(clamp: fx.Node) -> list[Any]:
    given = (*clamp.args[1:], None, None)[:2]
    return [clamp.kwargs.get(name, value) for name, value in zip(("min", "max"), given, strict=True)]
