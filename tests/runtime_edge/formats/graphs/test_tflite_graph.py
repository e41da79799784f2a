"""No TFLite file reaches the runtime unless it is one graph of known operators with its tensors in the file."""

from __future__ import annotations

import contextlib
from functools import partial

import numpy as np
import pytest
from damaged_bytes import damaged

from runtime_edge.errors import BackendError
from runtime_edge.formats.graphs.tflite_graph import check_tflite

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")


def model():
    """output = input - 1, as objects that can be changed."""
    buffers = [schema.BufferT() for _ in range(4)]
    buffers[2].data = np.frombuffer(np.ones(3, np.float32).tobytes(), np.uint8)
    tensors = []
    for index, name in enumerate(("x", "constant", "y")):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, 3], schema.TensorType.FLOAT32, index + 1
        tensors.append(tensor)
    code, node, graph, result = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SUB
    node.opcodeIndex, node.inputs, node.outputs = 0, [0, 1], [2]
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [node], [0], [2]
    result.version, result.operatorCodes, result.subgraphs, result.buffers = 3, [code], [graph], buffers
    return result


def packed(result) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(result.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operator(number):
    def change(result):
        code = result.operatorCodes[0]
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)

    return change


def custom(result):
    operator(schema.BuiltinOperator.CUSTOM)(result)
    result.operatorCodes[0].customCode = "Example"


def named(result):
    result.operatorCodes[0].customCode = "Example"


def options(result):
    result.subgraphs[0].operators[0].customOptions = [1, 2, 3]


def behind(result, offset=1 << 30, size=12):
    """The constant stands behind the tables: at this place in the file."""
    result.buffers[2].data, result.buffers[2].offset, result.buffers[2].size = None, offset, size


def twice(result):
    result.buffers[2].offset, result.buffers[2].size = 64, 12


def external(result):
    result.subgraphs[0].tensors[1].externalBuffer = 1


def large(result):
    result.subgraphs[0].tensors[2].shape = [1 << 20, 1 << 20]


def negative(result):
    result.subgraphs[0].tensors[2].shape = [-1, 3]


def size_from_the_audio(result):
    operator(schema.BuiltinOperator.BROADCAST_TO)(result)
    result.subgraphs[0].operators[0].inputs = [1, 0]


HOSTILE = {
    "a custom operator": (custom, "operator 32"),
    "a custom operator's name": (named, "is not one that a block may use"),
    "a custom operator's options": (options, "an operator has field 5"),
    "a delegate": (operator(schema.BuiltinOperator.DELEGATE), "operator 51"),
    "a loop": (operator(schema.BuiltinOperator.WHILE), "operator 119"),
    "a call": (operator(schema.BuiltinOperator.CALL_ONCE), "operator 129"),
    "a variable": (operator(schema.BuiltinOperator.VAR_HANDLE), "operator 142"),
    "a composite": (operator(schema.BuiltinOperator.STABLEHLO_COMPOSITE), "operator 206"),
    "a second graph": (lambda result: result.subgraphs.append(result.subgraphs[0]), "2 graphs"),
    "a buffer beyond the file": (behind, "a buffer outside the file"),
    "a buffer that ends beyond the file": (partial(behind, offset=64, size=1 << 62), "a buffer outside the file"),
    "a buffer whose end overflows": (partial(behind, offset=64, size=(1 << 64) - 32), "a buffer outside the file"),
    "a buffer at no place": (partial(behind, offset=0), "a buffer outside the file"),
    "a buffer at two places": (twice, "a buffer outside the file"),
    "an external buffer": (external, "external data"),
    "a tensor beyond all memory": (large, "more than"),
    "a negative size": (negative, "more than"),
    "a size that comes from the audio": (size_from_the_audio, "takes its size from"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_before_an_interpreter_is_made(name, monkeypatch):
    from runtime_edge.inference import tflite_backend
    from runtime_edge.inference.contract import RuntimeOptions

    change, reason = HOSTILE[name]
    result = model()
    change(result)
    monkeypatch.setattr(tflite_backend, "Interpreter", lambda *_, **__: pytest.fail("it was loaded"))
    ends = np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)

    with pytest.raises(BackendError, match=f"block: not a block that a device runs: .*{reason}"):
        tflite_backend.TfliteBackend(RuntimeOptions()).load(packed(result), None, *ends, "block")


def test_a_constant_behind_the_tables_is_admitted_and_read_from_there():
    """As quantisers write large constants."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    result = model()
    behind(result)
    place = -(-len(packed(result)) // 16) * 16
    behind(result, place)
    data = packed(result).ljust(place, b"\0") + np.full(3, 2.0, np.float32).tobytes()
    check_tflite(data, "block")

    run = interpreter.Interpreter(model_content=data)
    run.allocate_tensors()
    run.set_tensor(0, np.full((1, 3), 5.0, np.float32))
    run.invoke()
    assert run.get_tensor(2).tolist() == [[3.0, 3.0, 3.0]]


def test_every_cut_and_every_flipped_byte_gives_a_verdict():
    data = packed(model())
    check_tflite(data, "block")
    for part in damaged(data):
        with contextlib.suppress(BackendError):
            check_tflite(part, "block")


def test_the_numbers_of_the_operators_are_those_of_the_format():
    from runtime_edge.formats.graphs.operators import TFLITE_OPERATORS

    theirs = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    assert {number: theirs[number] for number in TFLITE_OPERATORS} == TFLITE_OPERATORS
