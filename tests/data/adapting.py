"""An encoder whose normalisation layers were changed at random, and the adaptation that does the same to its bundle."""

from __future__ import annotations

import numpy as np
import torch

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.parts import Expected
from runtime_edge.formats.graphs.onnx_norms import norms_of
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.adaptation import Adaptation, AdaptedLayer
from runtime_edge.inference.self_test import self_test_waveform
from runtime_server.adaptation.classifier import Classifier
from runtime_server.suffix.generations import copy_module

TOLERANCES = {"onnx-fp32": 1e-4, "onnx-fp16": 2e-3, "onnx-int8": 0.2}


def adapt(encoder: torch.nn.Module, bundle: Bundle, seed: int = 0) -> tuple[torch.nn.Module, Adaptation]:
    """A changed copy of an encoder, and the adaptation for its bundle, with the self-tests that torch computes."""
    changed, random, layers = copy_module(encoder), np.random.default_rng(seed), []
    names = bundle.manifest.info.blocks
    blocks = {norm: name for name in names for norm in norms_of(bundle.block_bytes(name, "onnx-fp32"), name)}
    for name, block in blocks.items():
        weight, bias = changed.get_parameter(f"{name}.weight"), changed.get_parameter(f"{name}.bias")
        scale = random.uniform(0.6, 1.6, weight.shape).astype("<f2")
        shift = random.normal(0, 0.2, weight.shape).astype("<f2")
        with torch.no_grad():
            weight.mul_(torch.from_numpy(scale.astype(np.float32)))
            bias.mul_(torch.from_numpy(scale.astype(np.float32))).add_(torch.from_numpy(shift.astype(np.float32)))
        layers.append(AdaptedLayer(block=block, name=name, scale=scale.tobytes(), shift=shift.tobytes()))
    info = bundle.manifest.info
    chirp = self_test_waveform(info.front_end.window_samples, info.front_end.sample_rate)
    with torch.inference_mode():
        embedding = changed(torch.from_numpy(chirp[None]))[0].numpy().astype("<f4").tobytes()
    adaptation = Adaptation(
        encoder=info.encoder.id,
        generation=info.generation,
        model=model_digest(bundle.manifest),
        created_by="test",
        self_tests={
            name: Expected(embedding=embedding, tolerance=allowed)
            for name, allowed in TOLERANCES.items()
            if name in bundle.manifest.variants
        },
        layers=tuple(layers),
    )
    return changed, adaptation


def moved(begun: Classifier, adapted: Classifier) -> set[str]:
    """The names of an encoder's tensors that adapting has changed."""
    before, after = begun.encoder.state_dict(), adapted.encoder.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}
