"""Exact folding on a segment's ATen graph, so that no arithmetic on weights is left for a converter.

    fold(segment)     the same function, with batch norms folded into the convolution before them, the affine part of a
                      layer norm into the linear layers after it, and a hard sigmoid's offset into the bias before it

All added nodes depend on parameters alone (`weight_program` takes them out) and are computed in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
)
_LINEAR = (aten.linear.default,)


def fold(segment: fx.GraphModule) -> fx.GraphModule:
    """A folded copy of a segment in eval mode; it shares the segment's tensors."""
    folder = _Folder(segment.graph)
    for node in list(folder.graph.nodes):
        if node.target is aten.dropout.default and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            folder.graph.erase_node(node)
        elif node.target is aten.batch_norm.default and node.args[5] is False:
            folder.batch_norm(node)
        elif node.target is aten.hardsigmoid.default:
            folder.hard_sigmoid(node)
    for node in list(folder.graph.nodes):
        if node.target is aten.layer_norm.default:
            folder.layer_norm(node)
    folder.graph.eliminate_dead_code()
    folder.graph.lint()
    return fx.GraphModule(segment, folder.graph)


class _Folder:
    """A copy of a graph, which knows what values depend on parameters alone."""

    def __init__(self, source: fx.Graph) -> None:
        self.graph = fx.Graph()
        self._fixed: set[fx.Node] = set()
        copies: dict[fx.Node, fx.Node] = {}
        # Parameters first: a folded node may come after the node that it is folded into.
        for node in sorted(source.nodes, key=lambda node: node.op != "get_attr"):
            copy = copies[node] = self.graph.node_copy(node, copies.__getitem__)
            inputs = copy.all_input_nodes
            if node.op == "get_attr" or (node.op == "call_function" and inputs and self._fixed.issuperset(inputs)):
                self._fixed.add(copy)

    def batch_norm(self, norm: fx.Node) -> None:
        """Y = scale * (conv(x) - mean) / sqrt(var + eps) + bias; a product and a sum if there is no convolution."""
        before, scale, bias, mean, variance = norm.args[:5]
        if not self._known(scale, bias, mean, variance):
            return
        conv = before if isinstance(before, fx.Node) and self._is_own_layer(before, _CONVOLUTIONS) else None
        with self.graph.inserting_before(norm if conv is None else conv):
            factor = self._work_out(aten.add.Scalar, self._double(variance), norm.args[7])
            factor = self._work_out(aten.rsqrt.default, factor)
            factor = factor if scale is None else self._work_out(aten.mul.Tensor, factor, scale)
            shift = self._work_out(aten.neg.default, self._double(mean))
            if conv is not None and _bias(conv) is not None:
                shift = self._work_out(aten.add.Tensor, shift, _bias(conv))
            shift = self._work_out(aten.mul.Tensor, shift, factor)
            shift = self._single(shift if bias is None else self._work_out(aten.add.Tensor, shift, bias))
            if conv is not None:
                weight = self._work_out(aten.mul.Tensor, conv.args[1], self._along(factor, conv.args[1], 0))
                conv.args = (conv.args[0], self._single(weight), shift, *conv.args[3:])
                result = conv
            else:
                factor = self._along(self._single(factor), before, 1)
                product = self.graph.call_function(aten.mul.Tensor, (before, factor))
                result = self.graph.call_function(aten.add.Tensor, (product, self._along(shift, before, 1)))
        _replace(norm, result)

    def hard_sigmoid(self, node: fx.Node) -> None:
        """clamp(x + 3, 0, 6) / 6, with the 3 in the bias of the layer before."""
        before = node.args[0]
        assert isinstance(before, fx.Node)
        if not self._is_own_layer(before, _CONVOLUTIONS + _LINEAR) or _bias(before) is None:
            return
        with self.graph.inserting_before(before):
            shift = self._single(self._work_out(aten.add.Scalar, self._double(_bias(before)), 3.0))
        before.args = (*before.args[:2], shift, *before.args[3:])
        with self.graph.inserting_before(node):
            clamped = self.graph.call_function(aten.clamp.default, (before, 0.0, 6.0))
            _replace(node, self.graph.call_function(aten.mul.Tensor, (clamped, 1 / 6)))

    def layer_norm(self, norm: fx.Node) -> None:
        """W (scale * n + bias) + b = (W scale) n + (W bias + b) in every linear layer that the norm feeds."""
        source, shape, scale, bias = (*norm.args, None, None)[:4]
        layers = [user for user in norm.users if user.target in _LINEAR and user.args[0] is norm]
        layers = [layer for layer in layers if self._known(*layer.args[1:3])]
        if not layers or scale is None or not _is_vector(shape) or not self._known(scale, bias):
            return
        with self.graph.inserting_before(norm):
            plain = self.graph.call_function(aten.layer_norm.default, (source, shape, None, None, *norm.args[4:]))
            affine = self.graph.call_function(aten.mul.Tensor, (plain, scale))
            affine = affine if bias is None else self.graph.call_function(aten.add.Tensor, (affine, bias))
        for layer in layers:
            with self.graph.inserting_before(layer):
                weight, before = self._double(layer.args[1]), _bias(layer)
                if bias is not None:
                    shift = self._work_out(aten.mv.default, weight, self._double(bias))
                    before = self._single(shift if before is None else self._work_out(aten.add.Tensor, shift, before))
                layer.args = (plain, self._single(self._work_out(aten.mul.Tensor, weight, scale)), before)
        _replace(norm, affine)

    def _is_own_layer(self, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
        """Whether a node is a layer with parameters whose result has only this one reader."""
        return node.target in kinds and len(node.users) == 1 and self._known(*node.args[1:3])

    def _known(self, *values: Any) -> bool:
        return all(value is None or value in self._fixed for value in values)

    def _work_out(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        self._fixed.add(node)
        return node

    def _along(self, vector: fx.Node, like: Any, axis: int) -> fx.Node:
        """`vector` (C,) shaped to broadcast against `like`, whose `axis` holds the channels."""
        shape = [1] * like.meta["val"].dim()
        shape[axis] = -1
        return self._work_out(aten.reshape.default, vector, shape)

    def _double(self, value: Any) -> fx.Node:
        return self._work_out(aten.to.dtype, value, torch.float64)

    def _single(self, value: fx.Node) -> fx.Node:
        return self._work_out(aten.to.dtype, value, torch.float32)


def _is_vector(shape: Any) -> bool:
    return len(shape) == 1


def _bias(layer: fx.Node) -> Any:
    return layer.args[2] if len(layer.args) > 2 else None


def _replace(node: fx.Node, result: fx.Node) -> None:
    """Replace a node by a result, which then follows the same module."""
    result.meta = {**node.meta, **result.meta}
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
