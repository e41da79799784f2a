import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from shapes import WINDOW, Convolutional, make

from runtime_edge.errors import UsageError
from streamsplit_compile.bundle.calibrate import calibration_windows
from streamsplit_compile.bundle.cut_choice import choose_cuts
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract, split
from streamsplit_compile.lowering.onnx_lowering import INPUT, OUTPUT, keep_graph, write_weights
from streamsplit_compile.lowering.onnx_precision import to_fp16_weights, to_int8

pytestmark = pytest.mark.integration

METADATA = {"ssc.encoder": "toy"}


def session_of(data):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the device runtime does
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(session, activations):
    return np.stack([session.run([OUTPUT], {INPUT: activation})[0] for activation in activations])


def cosines(found, expected):
    found, expected = found.reshape(len(found), -1), expected.reshape(len(expected), -1)
    return (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)


def operators(data):
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


@pytest.fixture(scope="module")
def blocks(resnet_encoder):
    cuts = choose_cuts(resnet_encoder, "log_mel,layer2.1")
    pairs = zip(split(resnet_encoder.graph, cuts), cuts, strict=False)
    kept = [keep_graph(segment, cut.shape, resnet_encoder.tensors.keys()) for segment, cut in pairs]
    return [write_weights(graph, resnet_encoder.tensors, METADATA) for graph in kept]


@pytest.fixture(scope="module")
def activations(blocks, resnet_encoder):
    """What comes into each block and out of the last, for 16 windows of real recordings where there are any."""
    audio = os.environ.get("SSC_TEST_AUDIO")
    windows, _ = calibration_windows(Path(audio, "esc10") if audio else None, 16_000, 16_000, 8_000, 16, 0)
    reached = itertools.accumulate(blocks, lambda x, block: run(session_of(block), x), initial=windows[:, None])
    return list(reached)


@pytest.fixture(scope="module")
def small():
    encoder = export_encoder(make(Convolutional), WINDOW)
    tensors = {name: value.detach().numpy() for name, value in encoder.module.state_dict().items()}
    kept = keep_graph(extract(encoder, encoder.candidates[0], encoder.candidates[-1]), (1, WINDOW), tensors.keys())
    return write_weights(kept, tensors, METADATA)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(size=(8, 1, WINDOW)).astype(np.float32)


def test_fp16_blocks_in_a_chain_are_the_encoder_in_half_the_bytes(blocks, activations):
    halved = [to_fp16_weights(block) for block in blocks]
    assert halved[0] == blocks[0]
    assert len(halved[1]) < 0.51 * len(blocks[1])
    assert len(halved[2]) < 0.51 * len(blocks[2])
    found = activations[0]
    for block in halved:
        found = run(session_of(block), found)
    assert cosines(found, activations[-1]).min() >= 0.999


def test_fp16_stores_weights_only():
    weight = np.array([[0.1, 1e-9, 7e4]], np.float32).repeat(3, 0)
    plain = np.full((3, 3), 0.1, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [INPUT, "plain"], ["a"]),
            helper.make_node("Add", ["a", "bias"], ["b"]),
            helper.make_node("MatMul", ["b", "large"], [OUTPUT]),
        ],
        "block",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(array, name) for name, array in
         {"plain": plain, "large": weight, "bias": np.full(3, 0.1, np.float32)}.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    halved = onnx.load_from_string(to_fp16_weights(model.SerializeToString()))
    onnx.checker.check_model(halved, full_check=True)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in halved.graph.initializer}
    assert stored["plain.fp16"].dtype == np.float16
    np.testing.assert_array_equal(stored["large"], weight)
    assert stored["bias"].dtype == np.float32
    x = np.ones((1, 3), np.float32)
    expected = (x @ plain.astype(np.float16).astype(np.float32) + np.float32(0.1)) @ weight
    np.testing.assert_allclose(session_of(halved.SerializeToString()).run(None, {INPUT: x})[0], expected, rtol=1e-6)


def test_int8_blocks_in_a_chain_are_close_to_the_encoder(blocks, activations):
    quantised = [to_int8(block, before) for block, before in zip(blocks, activations, strict=False)]
    # What the log-mel is computed from stays float32: nothing in that block is left to quantise.
    assert quantised[0] == blocks[0]
    assert len(quantised[1]) < 0.3 * len(blocks[1])
    assert len(quantised[2]) < 0.3 * len(blocks[2])
    found = activations[0]
    for block in quantised:
        session = session_of(block)
        assert {item.type for item in [*session.get_inputs(), *session.get_outputs()]} == {"tensor(float)"}
        found = run(session, found)
    assert np.median(cosines(found, activations[-1])) >= 0.98


def test_int8_weights_are_by_channel_and_symmetric(small, noise):
    model = onnx.load_from_string(to_int8(small, noise))
    onnx.checker.check_model(model, full_check=True)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kernels = [name for name, value in values.items() if value.dtype == np.int8 and value.ndim == 4]
    assert len(kernels) == 3
    for name in kernels:
        (node,) = [node for node in model.graph.node if name in node.input]
        scale, zero = (values[used] for used in node.input[1:3])
        assert node.op_type == "DequantizeLinear"
        assert scale.shape == values[name].shape[:1]
        assert not zero.any()
        assert (np.abs(values[name]).reshape(len(scale), -1).max(1) == 127).all()
    assert {item.key: item.value for item in model.metadata_props} == METADATA
    assert model.producer_name == "streamsplit"


def test_int8_follows_the_ranges_of_the_calibration(small, noise):
    wide, narrow = to_int8(small, noise), to_int8(small, 0.1 * noise)
    expected = run(session_of(small), noise)
    errors = [np.abs(run(session_of(data), noise) - expected).max() for data in (wide, narrow)]
    assert errors[0] < 0.05 * np.abs(expected).max()
    assert 2 * errors[0] < errors[1]


def test_int8_without_windows_is_refused(small, noise):
    with pytest.raises(UsageError, match="calibration windows"):
        to_int8(small, noise[:0])


def test_nothing_is_printed_or_left_behind(small, noise, capfd, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    to_int8(small, noise)
    to_fp16_weights(small)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import hashlib, pathlib, sys
import numpy as np
from streamsplit_compile.lowering.onnx_precision import to_fp16_weights, to_int8
data = pathlib.Path(sys.argv[1]).read_bytes()
noise = np.random.default_rng(0).normal(size=(8, 1, 64)).astype(np.float32)
sys.stdout.buffer.write(to_fp16_weights(data) + to_int8(data, noise))
"""


def test_another_process_gives_the_same_bytes(small, noise, tmp_path):
    (tmp_path / "model.onnx").write_bytes(small)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model.onnx")]
    result = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True)
    assert result.stdout == to_fp16_weights(small) + to_int8(small, noise)
    assert to_int8(small, noise) == to_int8(small, noise)
