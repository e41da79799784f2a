"""Reads graphs and constants from a TFLite flatbuffer. The compiler's only file that imports ai-edge-litert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import MissingExtra

try:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter
except ImportError as exc:
    raise MissingExtra("ai-edge-litert", "compile-tflite") from exc

__all__ = ["Interpreter", "TfliteConstant", "TfliteGraph", "TfliteNode", "float_constants", "read_graph"]

_CODES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


@dataclass(frozen=True)
class TfliteConstant:
    """A float32 constant and the position of its bytes in the flatbuffer."""

    name: str
    position: int
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class TfliteNode:
    """An operation: the name of its builtin code, and the indices of the tensors that it reads and writes."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class TfliteGraph:
    """The one subgraph of a model."""

    nodes: tuple[TfliteNode, ...]
    names: tuple[str, ...]
    """Names of the tensors."""
    constants: frozenset[int]
    """Indices of the tensors whose values are in the file."""
    input: int
    output: int


def read_graph(model: bytes) -> TfliteGraph:
    """The graph of a model with one subgraph, input and output."""
    root = schema.Model.GetRootAs(model, 0)
    graph = root.Subgraphs(0)
    tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
    nodes = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = root.OperatorCodes(operator.OpcodeIndex())
        name = _CODES.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
        inputs = tuple(int(tensor) for tensor in operator.InputsAsNumpy() if tensor >= 0)
        nodes.append(TfliteNode(name, inputs, tuple(int(tensor) for tensor in operator.OutputsAsNumpy())))
    constants = frozenset(
        index for index, tensor in enumerate(tensors) if root.Buffers(tensor.Buffer()).DataLength() > 0
    )
    names = tuple(tensor.Name().decode() for tensor in tensors)
    return TfliteGraph(tuple(nodes), names, constants, int(graph.Inputs(0)), int(graph.Outputs(0)))


def float_constants(model: bytes | bytearray) -> Iterator[TfliteConstant]:
    """The float32 constants of a model with one subgraph; their values are views of `model`."""
    start = np.frombuffer(model, np.uint8).ctypes.data
    root = schema.Model.GetRootAs(model, 0)
    graph = root.Subgraphs(0)
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        buffer = root.Buffers(tensor.Buffer())
        if tensor.Type() != schema.TensorType.FLOAT32 or buffer.DataLength() == 0:
            continue
        data: npt.NDArray[Any] = buffer.DataAsNumpy()
        shape = tuple(tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        yield TfliteConstant(tensor.Name().decode(), data.ctypes.data - start, data.view(np.float32).reshape(shape))
