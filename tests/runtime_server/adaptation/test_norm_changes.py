"""Layers as factors and shifts: they give what the trained layers give, and stay where a device can follow."""

import numpy as np
import pytest
import torch
from adapting import adapt

from runtime_edge.formats.records.adaptation import AdaptedLayer
from runtime_server.adaptation.norm_changes import NormChanges, adapted_tensors, layer_blocks
from runtime_server.suffix.generations import copy_module

BLOCKS = {"stem.1": "block-00", "down.1": "block-01", "residual.bn": "block-02"}
"""Where the adaptable bundle has the norms of `toys.Tiny`."""


@pytest.fixture
def encoder(tiny_encoder):
    return copy_module(tiny_encoder.graph.module)


def values(encoder):
    with torch.no_grad():
        return {
            f"{name}.{part}": encoder.get_parameter(f"{name}.{part}").numpy().copy()
            for name in BLOCKS
            for part in ("weight", "bias")
        }


def test_layers_are_in_the_blocks_whose_files_hold_them(adaptable):
    generation = adaptable.newest
    assert layer_blocks(generation.bundle, generation.model.segments) == BLOCKS


def test_a_layer_that_runs_in_two_blocks_and_one_that_no_file_notes_are_left_out(adaptable, small_bundle):
    bundle, segments = adaptable.newest.bundle, list(adaptable.newest.model.segments)
    assert layer_blocks(bundle, [segments[0], segments[1], segments[1], segments[3]]) == {"stem.1": "block-00"}
    assert layer_blocks(small_bundle, segments) == {}


def test_what_is_written_gives_what_the_trained_layers_give(encoder, tiny_encoder):
    changes = NormChanges(encoder, BLOCKS)
    assert changes.rounded() == ()
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name in BLOCKS:
            weight, bias = encoder.get_parameter(f"{name}.weight"), encoder.get_parameter(f"{name}.bias")
            weight.mul_(torch.from_numpy(random.uniform(0.5, 2, weight.shape).astype(np.float32)))
            bias.add_(torch.from_numpy(random.normal(0, 0.3, bias.shape).astype(np.float32)))
    layers, trained = changes.rounded(), values(encoder)
    assert [(layer.block, layer.name) for layer in layers] == [(block, name) for name, block in BLOCKS.items()]
    tensors = adapted_tensors(tiny_encoder.tensors, layers)
    for name, value in trained.items():
        np.testing.assert_allclose(tensors[name], value, rtol=2e-3, atol=2e-3)  # float16
    others = tiny_encoder.tensors.keys() - trained.keys()
    assert all(np.array_equal(tensors[name], tiny_encoder.tensors[name]) for name in others)

    changes.load(layers)
    for name, value in values(encoder).items():
        np.testing.assert_allclose(value, tensors[name], rtol=1e-6)
    assert changes.rounded() == layers, "what was loaded is what would be sent"
    changes.load(layers[:1])
    assert changes.rounded() == layers[:1], "the others are as compiled again"


def test_it_is_what_a_device_makes_of_the_same_layers(tiny_encoder, adaptable_bundle):
    changed, adaptation = adapt(tiny_encoder.graph.module, adaptable_bundle)
    tensors = adapted_tensors(tiny_encoder.tensors, adaptation.layers)
    for name, value in values(changed).items():
        np.testing.assert_allclose(tensors[name], value, rtol=1e-5, atol=1e-6)


def test_no_channel_turns_its_sign_or_leaves_the_range_and_a_silent_one_stays_silent(encoder):
    weight = encoder.get_parameter("stem.1.weight")
    with torch.no_grad():
        weight.copy_(torch.tensor([1.0, 2.0, -3.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
        changes = NormChanges(encoder, BLOCKS)
        weight.copy_(torch.tensor([-1.0, 1000.0, -1.5, 0.7, 0.0, 1.0, 1.0, 64.0]))
    changes.project()
    expected = [1 / 64, 128.0, -1.5, 0.0, 1 / 64, 1.0, 1.0, 64.0]
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-6)
    (layer,) = changes.rounded()
    assert layer.arrays()[0].tolist() == [1 / 64, 64.0, 0.5, 1.0, 1 / 64, 1.0, 1.0, 64.0]


def test_layers_of_another_encoder_are_refused(tiny_encoder):
    def layer(name, channels):
        ones = np.ones(channels, "<f2").tobytes()
        return AdaptedLayer(block="block-00", name=name, scale=ones, shift=ones)

    with pytest.raises(KeyError):
        adapted_tensors(tiny_encoder.tensors, [layer("nowhere", 8)])
    with pytest.raises(ValueError, match="broadcast"):
        adapted_tensors(tiny_encoder.tensors, [layer("stem.1", 3)])
