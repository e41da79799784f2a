"""Segments: the graph between two cuts, as a module of its own that shares the encoder's parameters."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.graph import Candidate, EncoderGraph, is_size, size_in


class CutRefused(UsageError):
    """The graph, a format or a runtime does not allow a cut at this place."""

    def __init__(self, cut: str, reason: str) -> None:
        super().__init__(f"cut {cut}: {reason}")
        self.cut = cut
        """The cut's name."""


def split(encoder: EncoderGraph, cuts: Sequence[Candidate]) -> list[fx.GraphModule]:
    """One module for each pair of neighbouring cuts; run in order, they compute what the encoder does.

    `cuts` starts with the waveform and ends with the embedding. A segment maps (batch, ...) float32 to
    (batch, ...) float32 and its parameters are the encoder's own tensors under their own names.
    """
    return [extract(encoder, start, end) for start, end in itertools.pairwise(cuts)]


def extract(encoder: EncoderGraph, start: Candidate, end: Candidate) -> fx.GraphModule:
    """The graph between two cuts: walk back from `end` to `start`, copying what it needs, constants included."""
    source, sink = encoder.node(start.node), encoder.node(end.node)
    needed = _between(source, sink)
    graph = fx.Graph()
    activation = graph.placeholder("activation")
    activation.meta = dict(source.meta)
    copies: dict[fx.Node, Any] = {source: activation}
    for node in encoder.module.graph.nodes:
        if node not in needed or node is source:
            continue
        if is_size(node) and not any(used in copies and not is_size(used) for used in node.all_input_nodes):
            copies[node] = _read_size(graph, activation, source, node)
        elif node.op == "placeholder":
            raise CutRefused(start.name, f"node {node.name} is needed behind it; it cannot be cut there")
        else:
            copies[node] = graph.node_copy(node, lambda used: copies[used])
    graph.output(copies[sink])
    graph.lint()
    segment = fx.GraphModule(encoder.module, graph)
    segment.meta["rows"] = None if encoder.dynamic_batch else start.shape[0]
    return segment


def run_segments(segments: Sequence[fx.GraphModule], activation: torch.Tensor) -> torch.Tensor:
    """Run neighbouring segments in order; (n * rows, ...) float32 in, (n, d) out, differentiable.

    An encoder that was exported for a batch of one runs window by window.
    """
    if segments and segments[0].meta["rows"] is not None:
        return torch.cat([_chain(segments, part) for part in torch.split(activation, segments[0].meta["rows"])])
    return _chain(segments, activation)


def in_float64(segment: fx.GraphModule) -> fx.GraphModule:
    """A copy of a segment that computes in float64 instead of float32."""

    def wider(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    copied = copy.deepcopy(segment).double()
    for node in copied.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(node.args, wider), fx.node.map_aggregate(node.kwargs, wider)
    copied.recompile()
    return copied


def by_channels(activations: torch.Tensor) -> torch.Tensor:
    """Images (n, c, h, w) in the channels-last layout, on which convolutions are fast; anything else unchanged.

    With one channel both layouts are the same memory, and only the strides tell them apart: without channels-last
    strides the first convolution, and with it all later ones, would use the other layout.
    """
    if activations.ndim != 4:
        return activations
    _, channels, height, width = activations.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return activations.contiguous(memory_format=torch.channels_last).as_strided(activations.shape, strides)


def _chain(segments: Sequence[fx.GraphModule], activation: torch.Tensor) -> torch.Tensor:
    for segment in segments:
        activation = segment(activation)
    return activation


def _between(source: fx.Node, sink: fx.Node) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    pending = [sink]
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        if node is source or (is_size(node) and size_in(node.meta["val"], source) is not None):
            continue
        pending.extend(node.all_input_nodes)
    return needed


def _read_size(graph: fx.Graph, activation: fx.Node, source: fx.Node, size: fx.Node) -> fx.Node:
    """A size that depends on the batch, read off the activation instead of the tensor it came from."""
    factor = size_in(size.meta["val"], source)
    assert factor is not None
    batch = graph.call_function(torch.ops.aten.sym_size.int, (activation, 0))
    batch.meta["val"] = source.meta["val"].shape[0]
    if factor == 1:
        return batch
    result = graph.call_function(operator.floordiv if factor > 0 else operator.mul, (batch, abs(factor)))
    result.meta["val"] = size.meta["val"]
    return result
