"""Exact folding on an ONNX graph with its weights: of constants, and of batch norms into the convolution before.

For devices that adapt them, a file can note which tensors hold its normalisation layers afterwards
(`runtime_edge.formats.graphs.onnx_norms` changes them).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from runtime_edge.formats.graphs.onnx_norms import METADATA, NormTensors, norms_of, write_norms

Array = npt.NDArray[Any]
_MAX_FOLDED_BYTES = 64 << 20
_NORMS = {"BatchNormalization", "LayerNormalization"}
_SCALE, _SHIFT = ".weight", ".bias"


class FoldedNorm(NamedTuple):
    """A batch norm that was folded into a convolution, and the names of the convolution's new tensors."""

    scale: str
    """Name of the norm's scale."""
    weight: str
    bias: str


def fold(graph: onnx.GraphProto, weights: Mapping[str, Array], norms: bool = True) -> list[FoldedNorm]:
    """Write weights into a graph and fold it in place; it computes the same function up to rounding.

    Returns the norms that were folded.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer} | dict(weights)
    _fold_constants(graph, values)
    folded = _fold_batch_norms(graph, values) if norms else []
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    del graph.initializer[:]
    for name in sorted(used & values.keys()):
        graph.initializer.append(numpy_helper.from_array(values[name], name))
    return folded


def _fold_constants(graph: onnx.GraphProto, values: dict[str, Array]) -> None:
    """Evaluate nodes all of whose inputs are known (transposed weights, reshaped biases)."""
    outputs = {value.name for value in graph.output}
    rest = []
    for node in graph.node:
        known = bool(node.input) and all(name in values or not name for name in node.input)
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif known and not outputs.intersection(node.output):
            results = _evaluate(node, {name: values[name] for name in node.input if name})
            values.update(zip(node.output, map(np.ascontiguousarray, results), strict=True))
        else:
            rest.append(node)
    del graph.node[:]
    graph.node.extend(rest)


def _evaluate(node: onnx.NodeProto, feeds: dict[str, Array]) -> list[Array]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    model = helper.make_model(helper.make_graph([node], "constant", inputs, outputs))
    results = ReferenceEvaluator(model).run(None, feeds)
    return [np.asarray(result) for result in results]


def _fold_batch_norms(graph: onnx.GraphProto, values: dict[str, Array]) -> list[FoldedNorm]:
    """Y = scale * (conv(x) - mean) / sqrt(var + eps) + bias, written into the convolution's weight and bias."""
    makers = {output: node for node in graph.node for output in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    dropped, found = [], []
    for node in graph.node:
        conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or uses[node.input[0]] != 1:
            continue
        if not all(name in values for name in [*node.input[1:5], *conv.input[1:]]):
            continue
        scale, bias, mean, variance = (values[name] for name in node.input[1:5])
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        weight = values[conv.input[1]]
        before = values[conv.input[2]] if len(conv.input) > 2 else 0.0
        folded = np.empty_like(weight)  # computed in float64, without a float64 array of that size
        np.multiply(weight, factor.reshape(-1, *[1] * (weight.ndim - 1)), out=folded, casting="same_kind")
        # Named after the convolution's result, because the weight and the norm may be shared with other convolutions.
        names = [f"{conv.output[0]}.folded_weight", f"{conv.output[0]}.folded_bias"]
        shift = (bias + (before - mean) * factor).astype(weight.dtype)
        values.update(zip(names, (folded, shift), strict=True))
        conv.input[1:] = names
        found.append(FoldedNorm(node.input[1], *names))
        conv.output[0] = node.output[0]
        dropped.append(node)
    for node in dropped:
        graph.node.remove(node)
    return found


def note_norms(model: onnx.ModelProto, folded: Iterable[FoldedNorm]) -> None:
    """Note the layers of a float32 file: those that were folded into convolutions, and those that stand in it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    scaled: defaultdict[str, list[str]] = defaultdict(list)
    shifted: defaultdict[str, list[str]] = defaultdict(list)
    for norm in folded:
        scaled[norm.scale] += [norm.weight, norm.bias]
        shifted[norm.scale].append(norm.bias)
    for node in model.graph.node:
        if node.op_type in _NORMS and len(node.input) > 2 and constants.issuperset(node.input[1:3]):
            scale, shift = node.input[1:3]
            if shift not in shifted[scale]:
                scaled[scale] += [scale, shift]
                shifted[scale].append(shift)
    _write(
        model,
        [
            NormTensors(layer=scale.removesuffix(_SCALE), scaled=tuple(names), shifted=tuple(shifted[scale]))
            for scale, names in scaled.items()
            if scale.endswith(_SCALE)
        ],
    )


def follow_norms(model: onnx.ModelProto, before: bytes) -> None:
    """Note the layers of a file that was made from a float32 file, whose tensors may have become float16 or int8."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    steps = {node.input[0]: node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for norm in norms_of(before, "the float32 file").values():
        scaled: list[str] = []
        shifted: list[str] = []
        moved: dict[str, str] = {}
        for name in norm.scaled:
            now = next(each for each in (name, f"{name}.fp16", f"{name}_quantized") if each in constants)
            scaled.append(steps.get(now, now))
            if name in norm.shifted:
                if now in steps:
                    moved[now] = steps[now]
                else:
                    shifted.append(now)
        found.append(NormTensors(layer=norm.layer, scaled=tuple(scaled), shifted=tuple(shifted), steps=moved))
        for name in (*scaled, *moved):
            constants[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constants[name]), name))
    _write(model, found)


def _write(model: onnx.ModelProto, norms: Sequence[NormTensors]) -> None:
    """Into the file's metadata; nothing if there are none."""
    if not norms:
        return
    entries = {entry.key: entry.value for entry in model.metadata_props} | {METADATA: write_norms(tuple(norms))}
    helper.set_model_props(model, dict(sorted(entries.items())))
