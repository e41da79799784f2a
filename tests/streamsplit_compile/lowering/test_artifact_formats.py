import importlib.util

import numpy as np
import pytest
import torch
from shapes import WINDOW, Convolutional, Skip, make

from runtime_edge.errors import MissingExtra, UsageError
from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.factory import open_backend
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract
from streamsplit_compile.lowering import artifact_formats

pytestmark = pytest.mark.integration

installed = all(importlib.util.find_spec(name) for name in ("litert_torch", "ai_edge_quantizer", "ai_edge_litert"))
needs_tflite = pytest.mark.skipif(not installed, reason="litert-torch is not installed: extra compile-tflite")
every_format = pytest.mark.parametrize("name", ["onnx", pytest.param("tflite", marks=needs_tflite)])


def segment_of(kind):
    encoder = export_encoder(make(kind), WINDOW)
    return extract(encoder, encoder.candidates[0], encoder.candidates[-1])


def tensors_of(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def other_weights(kind):
    other = make(kind)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return other


def run(name, precision, data, windows):
    source, result = np.zeros((1, WINDOW), np.float32), np.zeros((1, 8), np.float32)
    ends = {"input": artifact_formats.INPUT, "output": artifact_formats.OUTPUT}
    info = VariantInfo(format=name, precision=precision, file=f"sha256:{'0' * 64}/m", bytes=1, **ends)
    block = open_backend(name, RuntimeOptions()).load(data, info, source, result, "block")
    found = []
    for window in windows:
        source[:] = window
        block.run()
        found.append(result.copy())
    return np.stack(found)


@every_format
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-3), ("int8", 0.1)])
def test_every_precision_runs_on_the_device_runtime_with_new_weights(name, precision, tolerance):
    lowered = artifact_formats.lower(name, segment_of(Convolutional), (1, WINDOW), tensors_of(make(Convolutional)))
    other = other_weights(Convolutional)
    windows = np.random.default_rng(0).normal(size=(8, 1, WINDOW)).astype(np.float32)
    model = artifact_formats.reweight(name, lowered.kept, tensors_of(other))
    data = artifact_formats.to_precision(name, model, precision, windows)
    with torch.inference_mode():
        expected = np.stack([other(torch.from_numpy(window)).numpy() for window in windows])
    errors = np.abs(run(name, precision, data, windows) - expected)
    assert errors.max() <= tolerance * np.abs(expected).max()
    assert artifact_formats.variant_name(name, precision) == f"{name}-{precision}"


@every_format
def test_kept_graphs_name_what_they_need(name):
    tensors = tensors_of(make(Convolutional))
    kept = artifact_formats.lower(name, segment_of(Convolutional), (1, WINDOW), tensors).kept
    used = {tensor for tensor in tensors if not tensor.endswith("num_batches_tracked")}
    assert set(artifact_formats.parameter_names(name, kept)) == used


@needs_tflite
def test_a_graph_that_must_be_converted_again_asks_for_the_encoder():
    segment, other = segment_of(Skip), other_weights(Skip)
    lowered = artifact_formats.lower("tflite", segment, (1, WINDOW), tensors_of(make(Skip)))
    with pytest.raises(UsageError, match="needs the encoder"):
        artifact_formats.reweight("tflite", lowered.kept, tensors_of(other))
    model = artifact_formats.reweight("tflite", lowered.kept, tensors_of(other), source=(segment, (1, WINDOW)))
    window = np.random.default_rng(0).normal(size=(1, 1, WINDOW)).astype(np.float32)
    with torch.inference_mode():
        expected = other(torch.from_numpy(window[0])).numpy()
    np.testing.assert_allclose(run("tflite", "fp32", model, window)[0], expected, atol=1e-5)


@every_format
def test_int8_without_calibration_is_refused(name):
    lowered = artifact_formats.lower(name, segment_of(Convolutional), (1, WINDOW), tensors_of(make(Convolutional)))
    with pytest.raises(UsageError, match="calibration windows"):
        artifact_formats.to_precision(name, lowered.model, "int8")


@pytest.mark.skipif(installed, reason="litert-torch is installed")
def test_without_the_converter_the_error_names_the_extra():
    with pytest.raises(MissingExtra, match=r"streamsplit_audio-.*\[compile-tflite\]"):
        artifact_formats.lower("tflite", segment_of(Convolutional), (1, WINDOW), tensors_of(make(Convolutional)))
