import itertools
import random

import pytest
import torch
from shapes import GOOD, WINDOW, Attention, FoldedBatch, Linear, Mask, StaticBatch, make

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.graph import Candidate, export_encoder
from streamsplit_compile.encoder.segment import by_channels, extract, run_segments, split
from streamsplit_models.mobilenet import mobilenet_v3_small

pytestmark = pytest.mark.integration


def waveforms(count, samples=WINDOW):
    return torch.rand(count, samples, generator=torch.Generator().manual_seed(1)) * 2 - 1


def whole(module, windows):
    with torch.inference_mode():
        if isinstance(module, StaticBatch):
            return torch.cat([module(window[None]) for window in windows])
        if isinstance(module, Attention):  # a fused kernel for the whole layer rounds otherwise than its graph
            torch.backends.mha.set_fastpath_enabled(False)
        found = module(windows.clone())
        torch.backends.mha.set_fastpath_enabled(True)
        return found


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("batch", [1, 3])
def test_all_segments_in_order_are_the_encoder_to_the_bit(kind, batch):
    module = make(kind)
    encoder = export_encoder(module, WINDOW)
    windows = waveforms(batch)
    with torch.inference_mode():
        found = run_segments(split(encoder, encoder.candidates), windows)
    assert torch.equal(found, whole(module, windows))


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_every_choice_of_cuts_is_the_encoder_to_the_bit(kind):
    module = make(kind)
    encoder = export_encoder(module, WINDOW)
    first, *inner, last = encoder.candidates
    windows = waveforms(2)
    expected = whole(module, windows)
    rng = random.Random(0)
    for _ in range(8):
        chosen = [first, *(candidate for candidate in inner if rng.random() < 0.4), last]
        with torch.inference_mode():
            assert torch.equal(run_segments(split(encoder, chosen), windows), expected)


def test_segments_of_resnet_are_the_encoder_to_the_bit(resnet_encoder):
    windows = waveforms(2, 16000)
    segments = split(resnet_encoder.graph, resnet_encoder.graph.candidates)
    with torch.inference_mode():
        assert torch.equal(run_segments(segments, windows), resnet_encoder.graph.module(windows))


def test_segments_of_mobilenet_are_the_encoder_to_the_bit():
    module = mobilenet_v3_small()
    encoder = export_encoder(module, module.window_samples)
    windows = waveforms(2, module.window_samples)
    with torch.inference_mode():
        assert torch.equal(run_segments(split(encoder, encoder.candidates), windows), module(windows))


def test_each_activation_is_what_the_graph_has_there(tiny_encoder):
    values = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node):
            values[node.name] = super().run_node(node)
            return values[node.name]

    graph = tiny_encoder.graph
    windows = waveforms(3, 1024)
    with torch.inference_mode():
        Recorder(graph.module).run(windows)
        activation = windows
        for candidate, segment in zip(graph.candidates[1:], split(graph, graph.candidates), strict=True):
            activation = segment(activation)
            assert torch.equal(activation, values[candidate.node])
            assert activation.shape[1:] == candidate.shape[1:]


def test_parameters_are_the_encoders_own_under_their_names(tiny_encoder):
    own = dict(tiny_encoder.graph.module.named_parameters()) | dict(tiny_encoder.graph.module.named_buffers())
    seen = []
    for segment in split(tiny_encoder.graph, tiny_encoder.graph.candidates):
        for name, value in itertools.chain(segment.named_parameters(), segment.named_buffers()):
            assert value is own[name]
            seen.append(name)
    assert len(set(seen)) == len(seen)
    assert set(seen) == {name for name in own if not name.endswith("num_batches_tracked")}


def test_gradients_flow_through_a_suffix_and_equal_the_modules(tiny_encoder):
    graph = tiny_encoder.graph
    cut = next(candidate for candidate in graph.candidates if candidate.name == "down")
    prefix, suffix = extract(graph, graph.candidates[0], cut), extract(graph, cut, graph.candidates[-1])
    windows = waveforms(4, 1024)
    weight = graph.module.get_parameter("residual.conv.weight")
    (found,) = torch.autograd.grad(suffix(prefix(windows).detach())[:, 0].sum(), [weight])
    (expected,) = torch.autograd.grad(graph.module(windows)[:, 0].sum(), [weight])
    torch.testing.assert_close(found, expected)
    assert not any(name.startswith("stem") for name, _ in suffix.named_parameters())


def test_a_folded_batch_is_finished_from_inside_the_fold():
    module = make(FoldedBatch)
    encoder = export_encoder(module, WINDOW)
    inside = [candidate for candidate in encoder.candidates if candidate.shape == (4, 4)]
    assert len(inside) >= 2
    windows = waveforms(5)
    for cut in inside:
        prefix, suffix = split(encoder, [encoder.candidates[0], cut, encoder.candidates[-1]])
        with torch.inference_mode():
            activation = prefix(windows)
            assert activation.shape == (20, 4)
            assert torch.equal(suffix(activation), whole(module, windows))


def test_a_fixed_batch_is_run_window_by_window():
    module = make(StaticBatch)
    encoder = export_encoder(module, WINDOW)
    segments = split(encoder, encoder.candidates)
    windows = waveforms(4)
    (first,) = [candidate.position for candidate in encoder.candidates if candidate.name == "first"]
    with torch.inference_mode():
        activation = run_segments(segments[:first], windows)
        assert activation.shape == (4, 16)
        assert torch.equal(run_segments(segments[first:], activation), whole(module, windows))


def test_no_segments_change_nothing():
    activation = waveforms(2)
    assert run_segments([], activation) is activation


def test_a_place_that_more_than_one_tensor_crosses_is_refused():
    encoder = export_encoder(make(Mask), WINDOW)
    inside = next(node.name for node in encoder.module.graph.nodes if "tanh" in node.name)
    wrong = Candidate(1, inside, inside, (1, 16), False)
    with pytest.raises(UsageError, match=f"cut {inside}: node x is needed behind it"):
        extract(encoder, wrong, encoder.candidates[-1])


def test_extracting_leaves_the_encoder_as_it_was():
    encoder = export_encoder(make(Linear), WINDOW)
    before = str(encoder.module.graph)
    split(encoder, encoder.candidates)
    assert str(encoder.module.graph) == before


@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (3, 2, 4, 5), (1, 1, 4, 5)])
def test_images_stay_what_they_are_and_a_convolution_leaves_them_laid_out_by_channels(shape):
    images = torch.randn(shape)
    found = by_channels(images)
    assert torch.equal(found, images)
    assert found.stride() == (shape[1] * shape[2] * shape[3], 1, shape[3] * shape[1], shape[1])
    made = torch.nn.functional.conv2d(found, torch.randn(6, shape[1], 3, 3), padding=1)
    assert made.stride() == by_channels(made).stride()


def test_what_is_no_image_keeps_its_layout():
    tokens = torch.randn(2, 3, 4)
    assert by_channels(tokens) is tokens
