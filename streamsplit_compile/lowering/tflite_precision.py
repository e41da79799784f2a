"""Converts a float32 TFLite block to float16 weights or to static int8. Inputs and outputs stay float32.

The only file that imports ai-edge-quantizer.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import MissingExtra, UsageError
from streamsplit_compile.encoder.quiet import quiet
from streamsplit_compile.lowering.int8_regions import Kind, Operation, int8_operations, operations_before_log
from streamsplit_compile.lowering.tflite_file import Interpreter, TfliteGraph, float_constants, read_graph

try:
    with quiet():
        from ai_edge_quantizer import quantizer
except ImportError as exc:
    raise MissingExtra("ai-edge-quantizer", "compile-tflite") from exc

_LAYERS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
_BETWEEN = {
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "LOGISTIC", "MAX_POOL_2D", "MEAN", "MUL", "PAD",
    "RELU", "RESHAPE", "SLICE", "SPLIT", "STRIDED_SLICE", "TRANSPOSE",
}  # fmt: skip
_WEIGHT = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
_INT8 = {
    "weight_tensor_config": _WEIGHT,
    "activation_tensor_config": {"num_bits": 8, "symmetric": False, "granularity": "TENSORWISE", "dtype": "INT"},
    "compute_precision": "INTEGER",
    "explicit_dequantize": False,
}
_FP16 = {
    "weight_tensor_config": {"num_bits": 16, "dtype": "FLOAT"},
    "compute_precision": "FLOAT",
    "explicit_dequantize": True,
}


def to_fp16_weights(model: bytes) -> bytes:
    """The block with the weights of its layers stored as float16 and dequantised to float32 before use.

    Activations and biases stay float32, and so do layers that a logarithm is computed from (a front end's transform)
    or that have a weight beyond float16's range.
    """
    graph = read_graph(model)
    operations = _operations(graph)
    large = {c.name for c in float_constants(model) if np.abs(c.values).max() > np.finfo(np.float16).max}
    spared = operations_before_log(operations)
    chosen = {
        index
        for index, node in enumerate(graph.nodes)
        if operations[index].kind is Kind.LAYER
        and index not in spared
        and large.isdisjoint(graph.names[tensor] for tensor in node.inputs)
    }
    return _quantise(model, graph, chosen, "float_casting", _FP16, None) if chosen else model


def to_int8(model: bytes, activations: npt.NDArray[np.float32]) -> bytes:
    """The block in static int8: weights by channel, activations by tensor, ranges as seen in calibration.

    `activations` (windows, *shape) are the block's input. A block without layers to quantise is returned unchanged.
    Raises UsageError without activations.
    """
    if not len(activations):
        raise UsageError("int8 needs calibration windows")
    graph = read_graph(model)
    operations = _operations(graph)
    chosen = int8_operations(operations, graph.names[graph.input], graph.names[graph.output])
    if not chosen:
        return model
    return _quantise(model, graph, chosen, "min_max_uniform_quantize", _INT8, _ranges(model, graph, activations))


def _quantise(
    model: bytes, graph: TfliteGraph, chosen: set[int], algorithm: str, config: dict[str, Any], ranges: Any
) -> bytes:
    names = sorted(graph.names[graph.nodes[index].outputs[0]] for index in chosen)
    scope = f"^(?:{'|'.join(re.escape(name) for name in names)});$"
    recipe = [
        {"regex": scope, "operation": "*", "algorithm_key": algorithm, "op_config": config},
        {"regex": ".*", "operation": "OUTPUT", "algorithm_key": "no_quantize", "op_config": {}},
    ]
    with quiet():
        result = quantizer.Quantizer(bytearray(model), recipe).quantize(
            ranges, enable_progress_bar=False, enable_progress_report=False
        )
    assert result.quantized_model is not None
    return bytes(result.quantized_model)


def _ranges(
    model: bytes, graph: TfliteGraph, activations: npt.NDArray[np.float32]
) -> dict[str, dict[str, npt.NDArray[np.float32]]]:
    """Smallest and largest value of every float32 activation over the calibration windows."""
    with quiet():
        interpreter = Interpreter(model_content=model, num_threads=1, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    seen = [graph.input, *(tensor for node in graph.nodes for tensor in node.outputs)]
    seen = [tensor for tensor in seen if details[tensor]["dtype"] is np.float32]
    low, high = np.full(len(seen), np.inf, np.float32), np.full(len(seen), -np.inf, np.float32)
    for window in activations:
        interpreter.set_tensor(graph.input, window)
        interpreter.invoke()
        values = [interpreter.get_tensor(tensor) for tensor in seen]
        low = np.minimum(low, [value.min() for value in values])
        high = np.maximum(high, [value.max() for value in values])
    return {
        graph.names[tensor]: {"min": low[i].reshape(()), "max": high[i].reshape(())} for i, tensor in enumerate(seen)
    }


def _operations(graph: TfliteGraph) -> list[Operation]:
    operations = []
    for node in graph.nodes:
        inputs = tuple(graph.names[tensor] for tensor in node.inputs if tensor not in graph.constants)
        operations.append(Operation(_kind(node.code, len(inputs)), inputs, tuple(graph.names[t] for t in node.outputs)))
    return operations


def _kind(code: str, activations: int) -> Kind:
    if code == "LOG":
        return Kind.LOG
    if code in _LAYERS:
        return Kind.LAYER if activations == 1 else Kind.OTHER
    return Kind.BETWEEN if code in _BETWEEN else Kind.OTHER
