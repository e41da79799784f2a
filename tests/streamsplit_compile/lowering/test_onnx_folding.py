import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from streamsplit_compile.lowering.onnx_folding import fold

OPSET = helper.make_opsetid("", 18)


def model_of(nodes, initializers, shape):
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None] * len(shape))
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()]
    graph = helper.make_graph(nodes, "block", [source], [result], constants)
    return helper.make_model(graph, opset_imports=[OPSET], ir_version=9)


def run(model, activation):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": activation})[0]


def folded(model, **options):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    fold(copy.graph, {}, **options)
    onnx.checker.check_model(copy)
    return copy


def operators(model):
    return [node.op_type for node in model.graph.node]


@st.composite
def conv_and_norm(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spatial = draw(st.sampled_from([1, 2]))
    groups = draw(st.sampled_from([1, 2]))
    channels, filters = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    values = {
        "weight": rng.normal(size=(filters, channels // groups, *[3] * spatial)).astype(np.float32),
        "scale": rng.normal(size=filters).astype(np.float32),
        "shift": rng.normal(size=filters).astype(np.float32),
        "mean": rng.normal(size=filters).astype(np.float32),
        "variance": rng.uniform(0.05, 3, filters).astype(np.float32),
    }
    inputs = ["input", "weight"]
    if draw(st.booleans()):
        values["bias"] = rng.normal(size=filters).astype(np.float32)
        inputs.append("bias")
    epsilon = {"epsilon": draw(st.sampled_from([1e-3, 1e-5]))} if draw(st.booleans()) else {}
    nodes = [
        helper.make_node("Conv", inputs, ["conv"], group=groups, pads=[1] * 2 * spatial),
        helper.make_node("BatchNormalization", ["conv", "scale", "shift", "mean", "variance"], ["output"], **epsilon),
    ]
    shape = (1, channels, *[6] * spatial)
    return model_of(nodes, values, shape), rng.normal(size=shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(conv_and_norm())
def test_a_norm_behind_a_convolution_folds_exactly(case):
    model, activation = case
    result = folded(model)
    assert operators(result) == ["Conv"]
    np.testing.assert_allclose(run(result, activation), run(model, activation), atol=1e-5, rtol=1e-5)
    assert operators(folded(model, norms=False)) == ["Conv", "BatchNormalization"]


NORM = {name: np.array([0.5, 2.0], np.float32) for name in ("scale", "shift", "mean", "variance")}
WEIGHT = {"weight": np.random.default_rng(0).normal(size=(2, 2, 3, 3)).astype(np.float32)}
PARAMETERS = ["scale", "shift", "mean", "variance"]


def test_a_norm_stays_where_the_convolution_is_used_otherwise_too():
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["conv"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["conv", *PARAMETERS], ["norm"]),
        helper.make_node("Add", ["conv", "norm"], ["output"]),
    ]
    model = model_of(nodes, {**WEIGHT, **NORM}, (1, 2, 5, 5))
    activation = np.random.default_rng(1).normal(size=(1, 2, 5, 5)).astype(np.float32)
    result = folded(model)
    assert "BatchNormalization" in operators(result)
    np.testing.assert_array_equal(run(result, activation), run(model, activation))


def test_a_norm_stays_behind_anything_but_a_convolution():
    for first in (helper.make_node("Relu", ["input"], ["before"]), helper.make_node("Identity", ["input"], ["before"])):
        nodes = [first, helper.make_node("BatchNormalization", ["before", *PARAMETERS], ["output"])]
        assert "BatchNormalization" in operators(folded(model_of(nodes, NORM, (1, 2, 5, 5))))


def test_a_norm_whose_parameters_are_not_known_stays():
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["conv"], pads=[1] * 4),
        helper.make_node("Reshape", ["input", "shape"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "stop"], ["mean"]),
        helper.make_node("BatchNormalization", ["conv", "scale", "shift", "mean", "variance"], ["output"]),
    ]
    values = {name: value for name, value in NORM.items() if name != "mean"}
    numbers = {"shape": np.array([-1]), "start": np.array([0]), "stop": np.array([2])}
    model = model_of(nodes, {**WEIGHT, **values, **numbers}, (1, 2, 5, 5))
    assert "BatchNormalization" in operators(folded(model))


@pytest.mark.parametrize("shared", ["weight", "norm"])
def test_two_convolutions_that_share_values_fold_apart(shared):
    rng = np.random.default_rng(2)
    values = {**WEIGHT, **NORM, "weight2": rng.normal(size=(2, 2, 3, 3)).astype(np.float32)}
    values |= {f"{name}2": rng.uniform(0.5, 2, 2).astype(np.float32) for name in PARAMETERS}
    second_weight = "weight" if shared == "weight" else "weight2"
    second_norm = PARAMETERS if shared == "norm" else [f"{name}2" for name in PARAMETERS]
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["conv"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["conv", *PARAMETERS], ["norm"]),
        helper.make_node("Conv", ["norm", second_weight], ["conv2"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["conv2", *second_norm], ["output"]),
    ]
    model = model_of(nodes, values, (1, 2, 5, 5))
    activation = rng.normal(size=(1, 2, 5, 5)).astype(np.float32)
    result = folded(model)
    assert operators(result) == ["Conv", "Conv"]
    np.testing.assert_allclose(run(result, activation), run(model, activation), atol=1e-4, rtol=1e-5)


def test_constants_are_evaluated_and_what_nobody_uses_is_dropped():
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2.0))),
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        helper.make_node("Mul", ["turned", "two"], ["twice"]),
        helper.make_node("MatMul", ["input", "twice"], ["output"]),
    ]
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = folded(model_of(nodes, {"weight": weight, "unused": weight}, (1, 3)))
    assert operators(result) == ["MatMul"]
    (left,) = result.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(left), 2 * weight.T)


def test_a_constant_that_is_the_output_stays_computed():
    nodes = [helper.make_node("Neg", ["weight"], ["output"])]
    result = folded(model_of(nodes, {"weight": np.ones((1, 2), np.float32)}, (1, 3)))
    assert operators(result) == ["Neg"]


def test_folding_twice_changes_nothing():
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["conv"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["conv", *PARAMETERS], ["output"]),
    ]
    once = folded(model_of(nodes, {**WEIGHT, **NORM}, (1, 2, 5, 5)))
    assert folded(once).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
