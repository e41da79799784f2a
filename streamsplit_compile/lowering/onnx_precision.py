"""Converts a float32 ONNX block to float16 weights or to static int8. Inputs and outputs stay float32."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.quiet import quiet
from streamsplit_compile.lowering.int8_regions import Kind, Operation, int8_operations, operations_before_log
from streamsplit_compile.lowering.onnx_folding import follow_norms
from streamsplit_compile.lowering.onnx_lowering import INPUT, OUTPUT

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_BETWEEN = {
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "HardSigmoid", "MaxPool", "Mul",
    "Pad", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def to_fp16_weights(model_bytes: bytes) -> bytes:
    """The block with its weight matrices and kernels stored as float16 and cast to float32 before use.

    Activations, biases and norms stay float32, and so do weights that a logarithm is computed from (a front end's
    transform) and any tensor with a value beyond float16's range.
    """
    model = onnx.load_from_string(model_bytes)
    graph = model.graph
    operations = _operations(graph)
    spared = {name for index in operations_before_log(operations) for name in graph.node[index].input}
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or tensor.name in spared:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0.0) > _FLOAT16_MAX:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    follow_norms(model, model_bytes)
    return bytes(model.SerializeToString(deterministic=True))


def to_int8(model_bytes: bytes, activations: npt.NDArray[np.float32]) -> bytes:
    """The block as static QDQ: int8 weights by channel, int8 activations by tensor, ranges as seen in calibration.

    `activations` (windows, *shape) are the block's input. A block without layers to quantise is returned unchanged.
    Raises UsageError without activations.
    """
    if not len(activations):
        raise UsageError("int8 needs calibration windows")
    model = onnx.load_from_string(model_bytes)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    chosen = int8_operations(_operations(model.graph), INPUT, OUTPUT)
    if not chosen:
        return model_bytes
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    quantised = _quantise(model, sorted(model.graph.node[index].name for index in chosen), activations)
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    helper.set_model_props(quantised, metadata)
    follow_norms(quantised, model_bytes)
    return bytes(quantised.SerializeToString(deterministic=True))


def _quantise(model: onnx.ModelProto, nodes: list[str], activations: npt.NDArray[np.float32]) -> onnx.ModelProto:
    from onnxruntime import quantization

    with quiet(), tempfile.TemporaryDirectory(prefix="ssc-int8-") as folder:
        path = Path(folder) / "model.onnx"
        quantization.quantize_static(
            model,
            path,
            _Reader(activations),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=sorted(_LAYERS | _BETWEEN),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=nodes,
        )
        return onnx.load(path)


class _Reader:
    """Calibration windows, one at a time, as onnxruntime asks for them."""

    def __init__(self, activations: npt.NDArray[np.float32]) -> None:
        self._rest = iter(activations)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next window, or None."""
        window = next(self._rest, None)
        return None if window is None else {INPUT: window}


def _operations(graph: onnx.GraphProto) -> list[Operation]:
    constants = {tensor.name for tensor in graph.initializer}
    operations = []
    for node in graph.node:
        inputs = tuple(name for name in node.input if name and name not in constants)
        operations.append(Operation(_kind(node, constants), inputs, tuple(node.output)))
    return operations


def _kind(node: onnx.NodeProto, constants: set[str]) -> Kind:
    if node.op_type == "Log":
        return Kind.LOG
    if node.op_type in _LAYERS:
        return Kind.LAYER if any(name in constants for name in node.input) else Kind.OTHER
    return Kind.BETWEEN if node.op_type in _BETWEEN else Kind.OTHER
