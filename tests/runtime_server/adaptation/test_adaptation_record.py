"""An adaptation is what a device accepts: its own code passes the self-tests, and variants that cannot follow miss."""

import msgspec
import numpy as np
import pytest
import torch
from adapting import adapt

from runtime_edge.formats.records.adaptation import AdaptedLayer
from runtime_edge.formats.records.envelope import seal
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.self_test import self_test_waveform
from runtime_server.adaptation.adaptation_record import make_adaptation
from runtime_server.adaptation.norm_changes import adapted_tensors
from runtime_server.suffix.generations import cut_model

VARIANTS = ["onnx-fp16", "onnx-fp32", "onnx-int8"]


@pytest.fixture
def made(adaptable, tiny_encoder):
    """`made(layers, windows)`."""

    def make(layers, windows):
        generation = adaptable.newest
        tensors = adapted_tensors(tiny_encoder.tensors, layers)
        return make_adaptation(generation, cut_model(tiny_encoder.graph, generation.bundle, tensors), layers, windows)

    return make


def mild(layers):
    """The layers with a quarter of the change, which keeps int8's ranges."""

    def nearer(layer):
        scale, shift = layer.arrays()
        scale, shift = (part.astype("<f2").tobytes() for part in (1 + (scale - 1) / 4, shift / 4))
        return msgspec.structs.replace(layer, scale=scale, shift=shift)

    return tuple(map(nearer, layers))


def test_every_compiled_variant_passes_its_self_test_on_a_device(made, tiny_encoder, adaptable_bundle, sounds):
    _, example = adapt(tiny_encoder.graph.module, adaptable_bundle)
    adaptation = made(mild(example.layers), torch.from_numpy(sounds[:8]))
    assert sorted(adaptation.self_tests) == VARIANTS
    for variant in VARIANTS:
        adaptation.check_fits(adaptable_bundle.manifest, variant, "test")
        prefix = Prefix(adaptable_bundle, variant, adaptation=adaptation)
        prefix.self_test()
        test = adaptable_bundle.manifest.info.self_test
        compiled = np.frombuffer(test.variants.get(variant, test).embedding, "<f4")
        assert np.abs(prefix.embed(chirp(adaptable_bundle)) - compiled).max() > 1e-3, "which the change has changed"


def chirp(bundle):
    info = bundle.manifest.info.front_end
    return self_test_waveform(info.window_samples, info.sample_rate)


def test_its_float32_self_test_is_what_torch_gives(made, tiny_encoder, adaptable_bundle, sounds):
    changed, example = adapt(tiny_encoder.graph.module, adaptable_bundle)
    adaptation = made(example.layers, torch.from_numpy(sounds[:8]))
    with torch.inference_mode():
        expected = changed(torch.from_numpy(chirp(adaptable_bundle)[None]))[0].numpy()
    found = np.frombuffer(adaptation.self_tests["onnx-fp32"].embedding, "<f4")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (adaptation.generation, adaptation.encoder) == (1, adaptable_bundle.manifest.info.encoder.id)


def test_int8_is_left_out_where_its_ranges_no_longer_hold(made, adaptable_bundle, sounds, caplog):
    # Activations a dozen times larger than at compile time saturate.
    shift = np.linspace(-8, 8, 8).astype("<f2").tobytes()
    layers = (AdaptedLayer(block="block-00", name="stem.1", scale=np.full(8, 60, "<f2").tobytes(), shift=shift),)
    adaptation = made(layers, torch.from_numpy(sounds[:8]))
    assert sorted(adaptation.self_tests) == ["onnx-fp16", "onnx-fp32"]
    assert "onnx-int8 does not follow an adaptation" in caplog.text


def test_no_layers_take_an_earlier_one_back(made, adaptable_bundle, sounds):
    adaptation = made((), torch.from_numpy(sounds[:8]))
    assert (adaptation.layers, adaptation.self_tests) == ((), {})
    adaptation.check_fits(adaptable_bundle.manifest, "onnx-int8", "test")


def test_the_record_is_small(made, tiny_encoder, adaptable_bundle, sounds, signing_key):
    _, example = adapt(tiny_encoder.graph.module, adaptable_bundle)
    adaptation = made(example.layers, torch.from_numpy(sounds[:8]))
    channels = sum(len(layer.scale) // 2 for layer in adaptation.layers)
    record = seal("adaptation", "pi-1.rpi4", 1, adaptation.to_json(), signing_key)
    assert len(record) < 4 * channels + 1200, "two float16 for each channel, and what names them"
