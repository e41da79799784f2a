"""Exact folding on a segment's ATen graph: batch norms into the convolution before, or into one scale and shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
}


def fold_batch_norms(segment: fx.GraphModule) -> fx.GraphModule:
    """A copy of the segment without batch norms in eval mode; it shares the segment's tensors.

    Y = scale * (conv(x) - mean) / sqrt(var + eps) + bias is written into the convolution's weight and bias, or,
    where no convolution stands before, becomes a product and a sum. Folding is done in float64 and adds only nodes
    that depend on parameters alone.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    # Parameters first: what is folded may stand behind what it is folded into.
    for node in sorted(segment.graph.nodes, key=lambda node: node.op != "get_attr"):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    for node in list(graph.nodes):
        if node.target is aten.batch_norm.default and node.args[5] is False and _known(node.args[1:5]):
            _fold(graph, node)
    graph.eliminate_dead_code()
    graph.lint()
    folded = fx.GraphModule(segment, graph)
    folded.meta.update(segment.meta)
    return folded


def _fold(graph: fx.Graph, norm: fx.Node) -> None:
    before, scale, bias, mean, variance = norm.args[:5]
    assert isinstance(before, fx.Node)
    conv = before if before.target in _CONVOLUTIONS and len(before.users) == 1 and _known(before.args[1:3]) else None
    with graph.inserting_before(before if conv is not None else norm):
        factor = _call(graph, aten.rsqrt.default, _call(graph, aten.add.Scalar, _double(graph, variance), norm.args[7]))
        shift = _call(graph, aten.neg.default, _double(graph, mean))
        if scale is not None:
            factor = _call(graph, aten.mul.Tensor, factor, scale)
        if conv is not None and len(conv.args) > 2 and conv.args[2] is not None:
            shift = _call(graph, aten.add.Tensor, shift, conv.args[2])
        shift = _call(graph, aten.mul.Tensor, shift, factor)
        if bias is not None:
            shift = _call(graph, aten.add.Tensor, shift, bias)
        if conv is not None:
            weight = _call(graph, aten.mul.Tensor, conv.args[1], _per_channel(graph, factor, conv.args[1], 0))
            conv.args = (conv.args[0], _single(graph, weight), _single(graph, shift), *conv.args[3:])
            norm.replace_all_uses_with(conv)
        else:
            factor, shift = (_per_channel(graph, _single(graph, value), before, 1) for value in (factor, shift))
            scaled = _call(graph, aten.mul.Tensor, before, factor)
            norm.replace_all_uses_with(_call(graph, aten.add.Tensor, scaled, shift))
    graph.erase_node(norm)


def _known(values: Any) -> bool:
    return all(value is None or (isinstance(value, fx.Node) and value.op == "get_attr") for value in values)


def _per_channel(graph: fx.Graph, vector: fx.Node, like: Any, axis: int) -> fx.Node:
    """(C,) broadcast against `like`, whose `axis` holds the channels."""
    shape = [1] * like.meta["val"].dim()
    shape[axis] = -1
    return _call(graph, aten.reshape.default, vector, shape)


def _double(graph: fx.Graph, value: Any) -> fx.Node:
    return _call(graph, aten.to.dtype, value, torch.float64)


def _single(graph: fx.Graph, value: fx.Node) -> fx.Node:
    return _call(graph, aten.to.dtype, value, torch.float32)


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    return graph.call_function(target, args)
