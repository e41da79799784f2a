import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shapes import WINDOW, Convolutional, make

from runtime_edge.errors import UsageError
from runtime_edge.formats.graphs.block_check import check_block
from streamsplit_compile.bundle.calibrate import calibration_windows
from streamsplit_compile.bundle.cut_choice import choose_cuts
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract, split

if any(importlib.util.find_spec(name) is None for name in ("litert_torch", "ai_edge_quantizer")):
    pytest.skip("litert-torch or ai-edge-quantizer is not installed: extra compile-tflite", allow_module_level=True)

from ai_edge_litert import schema_py_generated as schema

from streamsplit_compile.lowering.tflite_file import Interpreter, float_constants, read_graph
from streamsplit_compile.lowering.tflite_lowering import INPUT, OUTPUT, keep_graph, write_weights
from streamsplit_compile.lowering.tflite_precision import to_fp16_weights, to_int8

pytestmark = pytest.mark.integration


def run(data, activations):
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    details = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    assert {detail["dtype"] for detail in details} == {np.float32}
    runner = interpreter.get_signature_runner()
    return np.stack([runner(**{INPUT: activation})[OUTPUT] for activation in activations])


def cosines(found, expected):
    found, expected = found.reshape(len(found), -1), expected.reshape(len(expected), -1)
    return (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)


def lower(encoder, tensors):
    segment = extract(encoder, encoder.candidates[0], encoder.candidates[-1])
    return write_weights(keep_graph(segment, encoder.candidates[0].shape, tensors.keys()), tensors)


def tensors_of(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def blocks(resnet_encoder):
    cuts = choose_cuts(resnet_encoder, "log_mel,layer2.1")
    pairs = zip(split(resnet_encoder.graph, cuts), cuts, strict=False)
    kept = [keep_graph(segment, cut.shape, resnet_encoder.tensors.keys()) for segment, cut in pairs]
    return [write_weights(graph, resnet_encoder.tensors) for graph in kept]


@pytest.fixture(scope="module")
def activations(blocks):
    """What comes into each block and out of the last, for 16 windows of real recordings where there are any."""
    audio = os.environ.get("SSC_TEST_AUDIO")
    windows, _ = calibration_windows(Path(audio, "esc10") if audio else None, 16_000, 16_000, 8_000, 16, 0)
    return list(itertools.accumulate(blocks, lambda x, block: run(block, x), initial=windows[:, None]))


@pytest.fixture(scope="module")
def small():
    module = make(Convolutional)
    return lower(export_encoder(module, WINDOW), tensors_of(module))


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
        found = run(block, found)
    assert cosines(found, activations[-1]).min() >= 0.999


def test_fp16_spares_weights_beyond_its_range(small):
    module = make(Convolutional)
    tensors = tensors_of(module)
    tensors["point.weight"] = tensors["point.weight"] * 1e7
    encoder = export_encoder(module, WINDOW)
    spared = {c.values.size for c in float_constants(to_fp16_weights(lower(encoder, tensors)))}
    assert module.point.weight.numel() in spared
    assert module.point.weight.numel() not in {c.values.size for c in float_constants(to_fp16_weights(small))}


def test_int8_blocks_in_a_chain_are_close_to_the_encoder(blocks, activations):
    quantised = [to_int8(block, before) for block, before in zip(blocks, activations, strict=False)]
    # What the log-mel is computed from stays float32: nothing in that block is left to quantise.
    assert quantised[0] == blocks[0]
    assert len(quantised[1]) < 0.3 * len(blocks[1])
    assert len(quantised[2]) < 0.3 * len(blocks[2])
    found = activations[0]
    for block in quantised:
        check_block("tflite", block, "a block that devices may run")
        found = run(block, found)
    assert np.median(cosines(found, activations[-1])) >= 0.98


def test_int8_weights_are_by_channel_and_activations_by_tensor(small, noise):
    model = schema.Model.GetRootAs(to_int8(small, noise), 0)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
    kernels, activations = [], []
    for tensor in tensors:
        if tensor.Type() == schema.TensorType.INT8:
            constant = model.Buffers(tensor.Buffer()).DataLength() > 0
            if not constant:
                activations.append(tensor.Quantization().ScaleLength())
            elif np.prod(tensor.ShapeAsNumpy()) > 8:
                kernels.append(tensor.Quantization().ScaleLength())
    assert sorted(kernels) == [4, 4, 8]
    assert set(activations) == {1}


def test_int8_quantises_on_the_way_in_and_back_on_the_way_out(small, noise):
    codes = [node.code for node in read_graph(to_int8(small, noise)).nodes]
    assert codes[0] == "QUANTIZE"
    assert "DEQUANTIZE" in codes


def test_int8_follows_the_ranges_of_the_calibration(small, noise):
    wide, narrow = to_int8(small, noise), to_int8(small, 0.1 * noise)
    expected = run(small, noise)
    errors = [np.abs(run(data, noise) - expected).max() for data in (wide, narrow)]
    assert errors[0] < 0.05 * np.abs(expected).max()
    assert 2 * errors[0] < errors[1]


def test_int8_without_windows_is_refused(small, noise):
    with pytest.raises(UsageError, match="calibration windows"):
        to_int8(small, noise[:0])


def test_nothing_is_printed(small, noise, capfd, caplog):
    to_int8(small, noise)
    to_fp16_weights(small)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


PROGRAM = """
import pathlib, sys
import numpy as np
from streamsplit_compile.lowering.tflite_precision import to_fp16_weights, to_int8
data = pathlib.Path(sys.argv[1]).read_bytes()
noise = np.random.default_rng(0).normal(size=(8, 1, 64)).astype(np.float32)
sys.stdout.buffer.write(to_fp16_weights(data) + to_int8(data, noise))
"""


def test_another_process_gives_the_same_bytes_and_says_nothing_else(small, noise, tmp_path):
    (tmp_path / "model.tflite").write_bytes(small)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model.tflite")]
    result = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True)
    assert result.stdout == to_fp16_weights(small) + to_int8(small, noise)
    assert result.stderr == b""
