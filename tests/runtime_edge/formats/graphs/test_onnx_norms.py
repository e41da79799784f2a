"""A file with an adaptation gives what the encoder with those norms gives, in each precision, and is else unchanged."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime_edge.errors import BackendError
from runtime_edge.formats.graphs.onnx_graph import check_onnx
from runtime_edge.formats.graphs.onnx_norms import METADATA, NormTensors, adapted, norms_of, write_norms

SCALE, SHIFT = np.array([0.5, 1.0, 2.0], "<f4"), np.array([0.25, 0.0, -1.0], "<f4")
WEIGHT, BIAS = np.arange(6, dtype="<f4").reshape(3, 2, 1, 1), np.array([1, -1, 0.5], "<f4")


def convolution(weight=WEIGHT, bias=BIAS, note=True, **tensors):
    """A file with one convolution, which says that the norm `norm` is folded into it."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "w", "b"], ["output"])],
        "block",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    norm = NormTensors(**{"layer": "norm", "scaled": ("w", "b"), "shifted": ("b",), **tensors})
    if note:
        helper.set_model_props(model, {METADATA: write_norms((norm,)), "other": "kept"})
    return model.SerializeToString()


def changed(data, layers):
    return adapted(data, check_onnx(data, "block"), layers, "block")


def run(data, x):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]


def test_each_channel_is_scaled_and_then_shifted():
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype("f4")
    before, after = convolution(), changed(convolution(), {"norm": (SCALE, SHIFT)})
    wanted = run(before, x) * SCALE[:, None, None] + SHIFT[:, None, None]
    np.testing.assert_allclose(run(after, x), wanted, atol=1e-5)
    assert len(after) == len(before)
    assert norms_of(after, "block") == norms_of(before, "block")


def test_nothing_else_changes_and_nothing_at_all_without_a_change():
    assert changed(convolution(), {}) == convolution()
    assert changed(convolution(), {"norm": (np.ones(3, "f4"), np.zeros(3, "f4"))}) == convolution()
    model = onnx.load_from_string(changed(convolution(), {"norm": (SCALE, SHIFT)}))
    same = onnx.load_from_string(convolution())
    del model.graph.initializer[:], same.graph.initializer[:]
    assert model == same


def test_a_file_without_a_note_has_no_layers_to_adapt():
    assert norms_of(convolution(note=False), "block") == {}
    with pytest.raises(BackendError, match="block: has no normalisation layer 'norm'; compile with --adaptable"):
        changed(convolution(note=False), {"norm": (SCALE, SHIFT)})


@pytest.mark.parametrize(
    ("tensors", "layers", "message"),
    [
        ({}, {"other": (SCALE, SHIFT)}, "has no normalisation layer 'other'"),
        ({}, {"norm": (-SCALE, SHIFT)}, "norm: factors must be positive"),
        ({}, {"norm": (SCALE * np.nan, SHIFT)}, "norm: factors must be positive"),
        ({}, {"norm": (SCALE, SHIFT + np.inf)}, "norm: factors must be positive, and shifts finite"),
        ({}, {"norm": (np.ones(4, "f4"), np.zeros(4, "f4"))}, "'w' does not have 4 channels"),
        ({"scaled": ("x",)}, {"norm": (SCALE, SHIFT)}, "no tensor 'x' that can be changed"),
        ({"steps": {"b": "x"}}, {"norm": (SCALE, SHIFT)}, "no tensor 'x' that can be changed"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tensors, layers, message):
    with pytest.raises(BackendError, match=message):
        changed(convolution(**tensors), layers)


def test_a_damaged_note_is_refused():
    data = convolution().replace(b'"scaled"', b'"scales"')
    with pytest.raises(BackendError, match=f"block: {METADATA}"):
        norms_of(data, "block")


def test_the_check_says_where_values_stand():
    found = check_onnx(convolution(), "block")
    assert found.metadata["other"] == "kept"
    stored = found.tensors["w"]
    assert convolution()[stored.start : stored.stop] == WEIGHT.tobytes()
    assert stored.type == TensorProto.FLOAT


def test_values_written_one_by_one_are_not_in_one_piece():
    model = onnx.load_from_string(convolution())
    model.graph.initializer[1].CopyFrom(helper.make_tensor("b", TensorProto.FLOAT, [3], BIAS.tolist()))
    data = model.SerializeToString()
    assert set(check_onnx(data, "block").tensors) == {"w"}
    with pytest.raises(BackendError, match="no tensor 'b' that can be changed"):
        changed(data, {"norm": (SCALE, SHIFT)})
