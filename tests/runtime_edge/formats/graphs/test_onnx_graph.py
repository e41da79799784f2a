"""No ONNX file reaches the runtime unless it is one graph of known operators with its tensors in the file."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from damaged_bytes import damaged
from hostile_blocks import VALUES, block
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from runtime_edge.errors import BackendError
from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.formats.graphs.onnx_graph import check_onnx
from runtime_edge.inference import onnx_backend
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.onnx_backend import OnnxBackend

INFO = VariantInfo(
    format="onnx", precision="fp32", file=f"sha256:{'0' * 64}/model.onnx", bytes=1, input="input", output="output"
)


def plain():
    """output = input + 1."""
    return block([helper.make_node("Add", ["input", "one"], ["output"])], {"one": np.ones(1, np.float32)})


def changed(change):
    model = plain()
    change(model)
    return model.SerializeToString()


def external(tensor):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/shadow"


def branch():
    name = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Identity", ["input"], ["x"])], "branch", [], [name])


def external_attribute(model):
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "hidden")
    external(tensor)
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))


def external_in_a_branch(model):
    graph = branch()
    external(graph.initializer.add(name="hidden", data_type=1, dims=[1]))
    model.graph.node.append(helper.make_node("If", ["input"], ["x"], then_branch=graph, else_branch=branch()))


def function(model):
    model.functions.append(
        helper.make_function("", "Add", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], model.opset_import)
    )


def renamed(operator, domain=""):
    def change(model):
        model.graph.node[0].op_type, model.graph.node[0].domain = operator, domain

    return change


def graph_attribute(model):
    model.graph.node[0].attribute.append(helper.make_attribute("body", branch()))


def sparse(model):
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [1 << 40])
    )


def reference(model):
    model.graph.node[0].attribute.append(AttributeProto(name="a", ref_attr_name="b", type=AttributeProto.FLOAT))


def larger_than_its_bytes(model):
    model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]


def size_from_the_audio(model):
    model.graph.node.insert(0, helper.make_node("Cast", ["input"], ["size"], to=TensorProto.INT64))
    model.graph.node[1].CopyFrom(helper.make_node("Expand", ["input", "size"], ["output"]))


HOSTILE = {
    "external data": (lambda m: external(m.graph.initializer[0]), "external data"),
    "external data in an attribute": (external_attribute, "external data"),
    "external data in a branch": (external_in_a_branch, "a graph of its own"),
    "a function": (function, "functions"),
    "a domain": (renamed("Add", "com.example"), "an operator of 'com.example'"),
    "a fused operator": (renamed("FusedConv", "com.microsoft"), "'com.microsoft'"),
    "an imported domain": (lambda m: m.opset_import.add(domain="com.microsoft", version=1), "imports operators"),
    "a loop": (renamed("Loop"), "operator 'Loop'"),
    "an unknown operator": (renamed("RandomNormal"), "operator 'RandomNormal'"),
    "no operator": (renamed(""), "operator ''"),
    "a graph as an attribute": (graph_attribute, "a graph of its own"),
    "sparse tensors": (sparse, "sparse tensors"),
    "a reference": (reference, "a function"),
    "training": (lambda m: m.training_info.add(), "training"),
    "a tensor larger than its bytes": (larger_than_its_bytes, "larger than the file"),
    "a tensor of text": (lambda m: m.graph.initializer[0].string_data.append(b"x"), "text"),
    "a size that comes from the audio": (size_from_the_audio, "takes its size from"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_before_a_session_is_made(name, monkeypatch):
    change, reason = HOSTILE[name]
    monkeypatch.setattr(onnx_backend.onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("it was loaded"))
    ends = np.zeros((1, VALUES), np.float32), np.zeros((1, VALUES), np.float32)

    with pytest.raises(BackendError, match=f"bundle: block-00: not a block that a device runs: .*{reason}"):
        OnnxBackend(RuntimeOptions()).load(changed(change), INFO, *ends, "bundle: block-00")


def test_the_last_of_two_fields_hides_nothing():
    """A protobuf's later field takes the place of an earlier one, or is added to it."""
    good, bad = plain().SerializeToString(), changed(renamed("Loop"))
    for data in (good + bad, bad + good):
        with pytest.raises(BackendError, match=r"operator 'Loop'|2 graphs"):
            check_onnx(data, "block")


def test_a_file_that_is_also_one_of_the_runtimes_own_format_is_read_as_onnx():
    """onnxruntime takes bytes with ORTM at 4 to 8 for its own format, which is not looked through."""
    data = changed(lambda model: setattr(model, "producer_name", "ORTM"))
    assert data[4:8] == b"ORTM"
    source, result = np.full((1, VALUES), 2, np.float32), np.zeros((1, VALUES), np.float32)

    OnnxBackend(RuntimeOptions()).load(data, INFO, source, result, "block").run()

    assert (result == 3).all()


def test_every_cut_and_every_flipped_byte_gives_a_verdict():
    data = plain().SerializeToString()
    check_onnx(data, "block")
    for part in damaged(data):
        with contextlib.suppress(BackendError):
            check_onnx(part, "block")


def test_the_number_of_fields_is_bounded():
    name = b"\x12\x00" * 300_000
    graph = b"\x3a" + varint(len(name)) + name
    with pytest.raises(BackendError, match="more than 262144 fields"):
        check_onnx(graph, "block")


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def test_what_onnx_says_of_a_good_block_is_kept():
    model = plain()
    check_onnx(model.SerializeToString(), "block")
    onnx.checker.check_model(model)
