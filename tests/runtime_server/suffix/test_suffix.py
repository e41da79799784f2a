"""The served blocks are the encoder's own function, folded or in bfloat16, at every cut."""

import operator

import pytest
import torch

from runtime_server.suffix import suffix
from runtime_server.suffix.suffix import ServedBlocks, record_block
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from streamsplit_compile.encoder.segment import run_segments, split

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """MobileNetV3-Small in four blocks; norms with statistics of their own, as after training."""
    torch.manual_seed(0)
    module, config = new_encoder("mobilenet_v3_small")
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("mobilenet") / "encoder.pt"
    save_checkpoint("mobilenet_v3_small", config, module, path)
    graph = load_encoder(path).graph
    places = [0, len(graph.candidates) // 4, len(graph.candidates) // 2, len(graph.candidates) - 1]
    return split(graph, [graph.candidates[place] for place in places])


@pytest.fixture(scope="module")
def activations(segments):
    """At each cut, of 12 different sounds."""
    sounds = torch.stack([torch.from_numpy(soundscape(1.0, 16_000, seed=seed)) for seed in range(12)])
    found = [sounds]
    with torch.no_grad():
        for segment in segments:
            found.append(segment(found[-1]))
    return found


@pytest.mark.parametrize("count", [1, 12])
def test_folded_blocks_give_the_plain_graphs_embeddings(segments, activations, count):
    served = ServedBlocks(segments)
    for cut, activation in enumerate(activations):
        before = activation[:count].clone()
        with torch.no_grad():
            expected = run_segments(segments[cut:], activation[:count].clone())
        found = served.complete(cut, activation[:count])
        assert (found - expected).abs().max() < 1e-5, f"cut {cut}"
        assert torch.equal(activation[:count], before), "what goes to the trainer was changed"


def test_bfloat16_is_close_and_leaves_the_front_end_alone(segments, activations):
    served = ServedBlocks(segments, "bfloat16")
    for cut, activation in enumerate(activations[:-1]):
        found = served.complete(cut, activation)
        assert found.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(found, activations[-1])
        assert 0.99 < cosine.min() < 1 - 1e-7, f"cut {cut}: not close, or not in bfloat16"
    lower, exact = (ServedBlocks(segments[:1], precision) for precision in ("bfloat16", "float32"))
    assert torch.equal(lower.complete(0, activations[0]), exact.complete(0, activations[0]))


def test_a_block_keeps_its_own_copy_of_the_weights(segments, activations):
    served = ServedBlocks(segments)
    before = served.complete(2, activations[2])
    weight = next(p for p in segments[2].parameters() if p.dim() == 4)
    with torch.no_grad():
        kept = weight.clone()
        weight.mul_(2.0)
        assert torch.equal(served.complete(2, activations[2]), before)
        weight.copy_(kept)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_blocks_are_recorded_so_that_no_operation_asks_for_pythons_lock(segments, activations, precision, monkeypatch):
    blocks = []

    def kept(*arguments):
        blocks.append(record_block(*arguments))
        return blocks[-1]

    monkeypatch.setattr(suffix, "record_block", kept)
    served = ServedBlocks(segments[-2:], precision)
    for count in (1, 5):
        found = served.complete(0, activations[-3][:count])
        assert len(found) == count
    assert [type(block).__name__ for block in blocks] == ["TopLevelTracedModule"] * 2


class _Sized(torch.nn.Module):
    def forward(self, activation):
        return activation / operator.index(activation.shape[0])


class _Refused(torch.nn.Module):
    def forward(self, activation):
        return activation if activation.sum() else [1, "text"]


@pytest.mark.parametrize(("block", "rows", "is_recorded"), [(_Sized(), None, False), (_Sized(), 3, True)])
def test_a_block_that_would_do_something_else_with_more_windows_stays_as_it_is(block, rows, is_recorded):
    recorded = record_block(block, torch.ones(3, 2), rows)
    assert (recorded is not block) == is_recorded
    assert torch.equal(recorded(torch.ones(3, 2)), torch.full((3, 2), 1 / 3))


def test_a_block_that_cannot_be_recorded_stays_as_it_is():
    block = _Refused()
    assert record_block(block, torch.zeros(1, 2), None) is block
