"""Every precision says where its norms are, and with an adaptation gives what torch gives with those norms."""

import numpy as np
import onnxruntime
import pytest
import torch
from shapes import WINDOW, Convolutional, make
from torch import nn

from runtime_edge.formats.graphs.onnx_graph import check_onnx
from runtime_edge.formats.graphs.onnx_norms import adapted, norms_of
from streamsplit_compile.encoder.graph import export_encoder
from streamsplit_compile.encoder.segment import extract
from streamsplit_compile.lowering.artifact_formats import to_precision
from streamsplit_compile.lowering.onnx_lowering import keep_graph, write_weights


class Tokens(nn.Module):
    """Layer norms, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)
        nn.init.normal_(self.first.bias)

    def forward(self, x):
        tokens = self.first(x.view(-1, WINDOW // 8, 8))
        return self.second(self.first(self.linear(tokens))).mean(1)


def tensors_of(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def lowered(module, norms="adaptable"):
    encoder = export_encoder(module, WINDOW)
    first, last = encoder.candidates[0], encoder.candidates[-1]
    tensors = tensors_of(encoder.module)
    kept = keep_graph(extract(encoder, first, last), first.shape, tensors.keys())
    return write_weights(kept, tensors, {"made": "here"}, norms)


def windows(count=4):
    return np.random.default_rng(0).uniform(-1, 1, (count, 1, WINDOW)).astype(np.float32)


def embed(data, window):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": window})[0]


@pytest.mark.parametrize(
    ("kind", "precision", "tolerance"),
    [
        *((kind, *precise) for kind in (Convolutional, Tokens) for precise in (("fp32", 1e-5), ("fp16", 2e-3))),
        (Convolutional, "int8", 0.03),
        (Tokens, "int8", 0.1),
    ],
)
def test_an_adapted_file_is_the_encoder_with_those_norms(kind, precision, tolerance):
    module, random = make(kind), np.random.default_rng(1)
    data = to_precision("onnx", lowered(module), precision, windows())
    norms = {name: layer for name, layer in module.named_modules()
             if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm) and layer.weight is not None}  # fmt: skip
    assert norms_of(data, "block").keys() == norms.keys()
    layers = {}
    for name, norm in norms.items():
        scale, shift = random.uniform(0.7, 1.4, norm.weight.shape), random.normal(0, 0.3, norm.weight.shape)
        layers[name] = scale.astype(np.float32), shift.astype(np.float32)
        with torch.no_grad():
            norm.weight.mul_(torch.from_numpy(layers[name][0]))
            norm.bias.mul_(torch.from_numpy(layers[name][0])).add_(torch.from_numpy(layers[name][1]))
    changed = adapted(data, check_onnx(data, "block"), layers, "block")
    with torch.inference_mode():
        wanted = module(torch.from_numpy(windows()[:, 0])).numpy()
    before, after = (np.concatenate([embed(file, window) for window in windows()]) for file in (data, changed))
    assert np.abs(before - wanted).max() > 2 * tolerance
    np.testing.assert_allclose(after, wanted, atol=tolerance)


def test_norms_are_noted_only_if_they_shall_be_adaptable():
    module = make(Convolutional)
    assert norms_of(lowered(module, "folded"), "block") == norms_of(lowered(module, "kept"), "block") == {}
    window = windows(1)[0]
    np.testing.assert_array_equal(embed(lowered(module, "folded"), window), embed(lowered(module), window))
