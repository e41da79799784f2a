"""Predicted cost of a block on a target: a roofline over counted work.

    compute_ms = macs / (GMAC/s * 1e6)
    memory_ms  = (weight bytes + activation bytes) / (GB/s * 1e6)
    ms         = max(compute_ms, memory_ms) + (session_us + kernels * kernel_us) / 1000
                 (compute_ms times the threads for work that runs on one of them)
    mJ         = (active_w - idle_w) * ms
    peak bytes = weight bytes + largest sum of activations alive at once

Bytes are counted as float32 and scaled to the precision: fp16 halves the weights, int8 quarters weights and
activations. `ssc profile` replaces these predictions by measurements.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from runtime_edge.formats.manifest import FrontEndInfo
from streamsplit_compile.cost.targets import Target

_FLOAT_BYTES = 4
_FFT_MACS = 16
"""Cost of numpy's FFT, with everything around it, per value and doubling of its length, in multiply-adds of a matrix
product that take as long: it uses no vector instructions. Measured on x86-64 for 512 and 1024 points."""
_FFT_KERNELS = 8
"""The number of kernels that take as long as the FFT's 30 or so calls into numpy."""
_WIDTHS = {"fp32": (1.0, 1.0), "fp16": (0.5, 1.0), "int8": (0.25, 0.25)}
"""Precision -> size of (weights, activations) relative to float32."""


@dataclass(frozen=True)
class BlockWork:
    """The work of one window in a block, whatever the device. Bytes are those of float32 tensors."""

    macs: int
    weight_bytes: int
    activation_bytes: int
    """Bytes read and written by all kernels."""
    kernels: int
    peak_activation_bytes: int
    serial: bool = False
    """Whether it runs on one thread, however many a target has."""


@dataclass(frozen=True)
class BlockCost:
    """The cost of one window in a block on one target at one precision."""

    ms: float
    mj: float
    peak_memory_bytes: int


def predict(work: BlockWork, target: Target, precision: str = "fp32") -> BlockCost:
    """Apply the module's formula. Raises UsageError when the target has no such precision."""
    compute_ms = work.macs * (target.threads if work.serial else 1) / (target.gmacs_per_s(precision) * 1e6)
    weights, activations = _WIDTHS[precision]
    weight_bytes = work.weight_bytes * weights
    moved = weight_bytes + work.activation_bytes * activations
    memory_ms = moved / (target.memory.bandwidth_gb_per_s.value * 1e6)
    launch_us = target.launch.session_us.value + work.kernels * target.launch.kernel_us.value
    ms = max(compute_ms, memory_ms) + launch_us / 1000
    mj = (target.power.active_w.value - target.power.idle_w.value) * ms
    return BlockCost(ms, mj, round(weight_bytes + work.peak_activation_bytes * activations))


def count_work(module: fx.GraphModule) -> BlockWork:
    """Count the work of one window in a graph of `torch.export.export(...).module()`, from `meta["val"]`.

    A symbolic batch counts as 1. Nodes that depend on constants alone are folded at load and cost nothing; views, and
    nodes that a runtime folds into the convolution or matmul before (batch norm, ReLU), are not counted as kernels.
    """
    nodes = list(module.graph.nodes)
    data = _data_nodes(nodes)
    storage = _storage(nodes, data)
    kernels = [node for node in nodes if node in data and storage[node] is node and node.op == "call_function"]
    weights = {
        value
        for node in nodes
        if node in data and not _is_folded(node)
        for value in node.all_input_nodes
        if value not in data
    }
    moved = 0
    for node in kernels:
        reads = {storage[value] for value in node.all_input_nodes if value in data}
        moved += _bytes(node) + sum(_bytes(value) for value in reads)
    return BlockWork(
        macs=sum(count_macs(node) for node in kernels),
        weight_bytes=sum(_bytes(value) for value in weights),
        activation_bytes=moved,
        kernels=len(kernels),
        peak_activation_bytes=_peak_bytes(nodes, data, storage),
    )


def fft_work(front_end: FrontEndInfo) -> BlockWork | None:
    """The work of a native front end in place of the first block, for new frames only; None if none is described."""
    info = front_end.log_mel
    if info is None:
        return None
    (begin, end), _ = info.kept_frames(front_end.window_samples, front_end.hop_samples)
    values = (info.frames(front_end.window_samples) - (end - begin)) * info.n_fft
    moved = _FLOAT_BYTES * (front_end.window_samples * info.upsample + 4 * values)
    macs = round(_FFT_MACS * values * math.log2(info.n_fft))
    return BlockWork(macs, _FLOAT_BYTES * info.n_fft * 4, moved, _FFT_KERNELS, moved, serial=True)


def count_macs(node: fx.Node) -> int:
    """Multiply-adds of one node for a batch of 1, if it is a convolution, product, recurrent layer or transform."""
    counter = _MACS.get(_operator(node))
    return counter(node) if counter is not None else 0


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(_static(size) for size in node.meta["val"].shape)


def _static(size: Any) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _operator(node: fx.Node) -> str:
    """A node's operator: `conv2d` for aten.conv2d.default and aten.conv2d.padding, or a Python function's name."""
    schema = getattr(node.target, "_schema", None)
    name: str = schema.name if schema is not None else getattr(node.target, "__name__", "")
    return name.removeprefix("aten::")


def _convolution(node: fx.Node) -> int:
    weight = _shape(node.args[1])
    return math.prod(_shape(node)) * math.prod(weight[1:])


def _transposed_convolution(node: fx.Node) -> int:
    return math.prod(_shape(node.args[0])) * math.prod(_shape(node.args[1])[1:])


def _any_convolution(node: fx.Node) -> int:
    return _transposed_convolution(node) if node.args[6] else _convolution(node)


def _matmul(left: int) -> Callable[[fx.Node], int]:
    """Count output elements times the contracted length, which is the last axis of argument `left`."""
    return lambda node: math.prod(_shape(node)) * _shape(node.args[left])[-1]


def _attention(node: fx.Node) -> int:
    """Scores (queries x keys x width) and their product with the values; a causal mask saves nothing."""
    query, key, value = (_shape(argument) for argument in node.args[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(node: fx.Node) -> int:
    """Product of all index lengths, for two operands without an ellipsis."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str)
    assert isinstance(operands, (list, tuple))
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if "..." in equation or len(terms) != 2:
        return 0
    lengths: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        lengths.update(zip(term, _shape(operand), strict=True))
    return math.prod(lengths.values())


def _recurrent(node: fx.Node) -> int:
    """Each two-dimensional weight once for each step: these are the matrices of all layers and directions."""
    weights = node.args[2:4] if _operator(node).endswith("_cell") else _in_lists(node)
    matrices = [shape for shape in map(_shape, weights) if len(shape) == 2]
    return math.prod(_shape(node.args[0])[:-1]) * sum(map(math.prod, matrices))


def _fourier(node: fx.Node) -> int:
    """Fast transforms of length n: 2 log2(n) for each value."""
    if _operator(node) == "stft":
        size = node.args[1]
        assert isinstance(size, int)
        return round(2 * math.log2(size) * size * _shape(node)[-1])
    size = max(_shape(node)[-1], _shape(node.args[0])[-1])
    return round(2 * math.log2(max(size, 2)) * math.prod(_shape(node)[:-1]) * size)


def _in_lists(node: fx.Node) -> list[Any]:
    return [item for argument in node.args if isinstance(argument, (list, tuple)) for item in argument]


_MACS: dict[str, Callable[[fx.Node], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot"), _matmul(0)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _matmul(1)),
    "convolution": _any_convolution,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    **dict.fromkeys(("stft", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "_fft_r2c", "_fft_c2c"), _fourier),
    **dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent),
}

_VIEWS = {
    *("view", "view_as", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("alias", "detach", "contiguous", "dropout", "lift_fresh_copy", "identity"),
}
_FOLDED = {"batch_norm", "relu", "relu6", "hardtanh", "leaky_relu", "clamp"}


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem or _operator(node) in _VIEWS:
        return True
    return _operator(node) == "slice" and _shape(node) == _shape(node.args[0])


def _is_folded(node: fx.Node) -> bool:
    """Whether a runtime computes this node together with the convolution or matmul whose only reader it is."""
    while node.op == "call_function" and _operator(node) in _FOLDED:
        (source, *_) = node.all_input_nodes
        if len(source.users) != 1:
            return False
        if _operator(source) in _MACS:
            return True
        node = source
    return False


def _tensors(node: fx.Node) -> Iterator[torch.Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else (value,)
    return (item for item in values if isinstance(item, torch.Tensor))


def _bytes(node: fx.Node) -> int:
    return sum(_FLOAT_BYTES * math.prod(_static(size) for size in tensor.shape) for tensor in _tensors(node))


def _data_nodes(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes whose values are tensors that depend on the input, without sizes and constants."""
    data: set[fx.Node] = set()
    for node in nodes:
        depends = node.op == "placeholder" or not data.isdisjoint(node.all_input_nodes)
        if node.op != "output" and depends and any(True for _ in _tensors(node)):
            data.add(node)
    return data


def _storage(nodes: list[fx.Node], data: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For each data node the node that wrote its bytes: itself, unless it is a view or folded into another."""
    storage: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in data:
            shares = node.op == "call_function" and (_is_view(node) or _is_folded(node))
            sources = [value for value in node.all_input_nodes if value in data]
            storage[node] = storage[sources[0]] if shares and sources else node
    return storage


def _peak_bytes(nodes: list[fx.Node], data: set[fx.Node], storage: dict[fx.Node, fx.Node]) -> int:
    """Largest sum of tensors alive while a kernel runs: its inputs, its output, and tensors that are read later."""
    last_read: dict[fx.Node, int] = {}
    for index, node in enumerate(nodes):
        for value in node.all_input_nodes:
            if value in data:
                last_read[storage[value]] = index
    alive: set[fx.Node] = set()
    peak = 0
    for index, node in enumerate(nodes):
        if storage.get(node) is node:
            alive.add(node)
            peak = max(peak, sum(_bytes(value) for value in alive))
        alive = {value for value in alive if last_read.get(value, -1) > index}
    return peak
