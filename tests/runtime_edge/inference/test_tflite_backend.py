import importlib.util
import tracemalloc

import numpy as np
import pytest

from runtime_edge.errors import BackendError, MissingExtra
from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.factory import open_backend


def found(name):
    return importlib.util.find_spec(name) is not None


installed = found("ai_edge_litert") or found("tflite_runtime")
needs_runtime = pytest.mark.skipif(
    not found("ai_edge_litert"), reason="ai-edge-litert, whose schema writes these models, is not installed"
)
INFO = VariantInfo(
    format="tflite", precision="fp32", file=f"sha256:{'0' * 64}/model.tflite", bytes=1, input="input", output="output"
)


def model(operation="SUB", dtype="FLOAT32", constant=1.0, inputs=1):
    """The bytes of a model computing `input <operation> constant` on (1, 3), or on two inputs."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    kind = getattr(schema.TensorType, dtype)
    values = np.full(3, constant, np.float32 if dtype == "FLOAT32" else np.int32)
    buffers = [schema.BufferT() for _ in range(4)]
    buffers[2].data = np.frombuffer(values.tobytes(), np.uint8)
    tensors = []
    for index, name in enumerate(("x", "constant", "y")):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, 3], kind, index + 1
        tensors.append(tensor)
    tensors[1].buffer = 2 if inputs == 1 else 0
    code, node, graph, result = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, operation)
    code.version = 1
    node.opcodeIndex, node.inputs, node.outputs = 0, [0, 1], [2]
    node.builtinOptionsType = schema.BuiltinOptions.SubOptions
    node.builtinOptions = schema.SubOptionsT()
    graph.tensors, graph.operators = tensors, [node]
    graph.inputs, graph.outputs = [0] if inputs == 1 else [0, 1], [2]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = [schema.TensorMapT()], [schema.TensorMapT()]
    signature.inputs[0].name, signature.inputs[0].tensorIndex = "input", 0
    signature.outputs[0].name, signature.outputs[0].tensorIndex = "output", 2
    result.version, result.operatorCodes, result.subgraphs, result.buffers = 3, [code], [graph], buffers
    result.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(result.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def load(data, source=(1, 3), result=(1, 3), threads=1, info=INFO, options=None):
    buffers = np.zeros(source, np.float32), np.full(result, 7, np.float32)
    backend = open_backend("tflite", options or RuntimeOptions(threads))
    return (*buffers, backend.load(data, info, *buffers, "bundle: block-00 (tflite-fp32)"))


@pytest.mark.skipif(installed, reason="a TFLite runtime is installed")
def test_without_a_runtime_the_error_names_the_extra():
    with pytest.raises(MissingExtra, match=r"ai-edge-litert .*streamsplit_audio-.*\[edge-tflite\]"):
        open_backend("tflite", RuntimeOptions())


@needs_runtime
@pytest.mark.parametrize("threads", [1, 2])
def test_a_block_reads_and_writes_the_buffers_it_was_bound_to(threads):
    source, result, block = load(model(), threads=threads)
    for values in ([1.0, 2.0, 3.0], [-1.0, 0.5, 1e6]):
        source[0] = values
        block.run()
        np.testing.assert_array_equal(result[0], source[0] - 1)


@needs_runtime
@pytest.mark.parametrize(("providers", "delegated"), [(("xnnpack", "cpu"), True), (("cpu",), False)])
def test_xnnpack_can_be_left_out(monkeypatch, providers, delegated):
    from runtime_edge.inference import tflite_backend

    made = []

    class Kept(tflite_backend.Interpreter):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(tflite_backend, "Interpreter", Kept)
    source, result, block = load(model(), options=RuntimeOptions(1, providers))
    source[0] = [1.0, 2.0, 3.0]
    block.run()
    assert result.tolist() == [[0.0, 1.0, 2.0]]
    operations = {details["op_name"] for details in made[0]._get_ops_details()}
    assert ("DELEGATE" in operations) == delegated


@needs_runtime
def test_two_blocks_share_a_buffer():
    backend = open_backend("tflite", RuntimeOptions())
    buffers = [np.zeros((1, 3), np.float32) for _ in range(3)]
    first = backend.load(model(constant=1.0), INFO, buffers[0], buffers[1], "first")
    second = backend.load(model(constant=10.0), INFO, buffers[1], buffers[2], "second")
    buffers[0][0] = [1, 2, 3]
    first.run()
    second.run()
    assert buffers[2].tolist() == [[-10, -9, -8]]


@needs_runtime
def test_running_a_block_leaves_no_memory_behind():
    _, _, block = load(model())
    block.run()
    tracemalloc.start()
    try:
        block.run()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            block.run()
        assert tracemalloc.get_traced_memory()[0] - before < 500
    finally:
        tracemalloc.stop()


@needs_runtime
def test_the_backend_says_what_it_is_and_nothing_else(capfd):
    load(model())
    assert open_backend("tflite", RuntimeOptions()).name.startswith("ai-edge-litert 2")
    assert capfd.readouterr() == ("", "")


@needs_runtime
@pytest.mark.parametrize("data", [b"", b"nonsense", b"TFL3" * 100])
def test_what_is_no_model_is_refused_in_one_line(data):
    with pytest.raises(BackendError, match=r"block-00 \(tflite-fp32\): not a block that a device runs") as caught:
        load(data)
    assert "\n" not in str(caught.value)


@needs_runtime
def test_a_truncated_model_is_refused():
    with pytest.raises(BackendError, match="it is damaged"):
        load(model()[:-40])


@needs_runtime
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": (1, 4)}, r"shape \[1, 3\], the manifest \[1, 4\]"),
        ({"result": (3,)}, r"shape \[1, 3\], the manifest \[3\]"),
        ({"data": {"dtype": "INT32"}}, "int32, expected float32"),
        ({"data": {"inputs": 2}}, "refuses it"),
        ({"data": {"operation": "CUSTOM"}}, "not a block that a device runs"),
    ],
)
def test_blocks_that_are_not_what_the_manifest_says_are_refused(changes, message):
    with pytest.raises(BackendError, match=message):
        load(model(**changes.pop("data", {})), **changes)


@needs_runtime
def test_other_names_than_the_manifest_s_are_refused():
    info = VariantInfo(format="tflite", precision="fp32", file=INFO.file, bytes=1, input="x", output="output")
    with pytest.raises(BackendError, match="the manifest x and output"):
        load(model(), info=info)
