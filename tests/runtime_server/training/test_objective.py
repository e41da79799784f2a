"""What a batch at several cuts counts as the same, and where it is augmented."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from runtime_server.training.augment import AugmentConfig
from runtime_server.training.buffer import TemporalBuffer, TrainingWindow
from runtime_server.training.losses import HybridConfig, HybridLoss
from runtime_server.training.objective import batch_loss, batch_of, first_trainable
from runtime_server.training.ranks import EmbeddingBatch

PLAIN = AugmentConfig(time_mask=0, frequency_mask=0, gain_db=0, noise=0, mix=0, shift=0)


class Spectrum(nn.Module):
    """A front end: nothing in it is trained."""

    def forward(self, waveform):
        return waveform.reshape(-1, 1, 4, 4)


@pytest.fixture
def segments():
    """Waveform -> image -> channels -> embedding, cut between all of them."""
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Flatten(), nn.Linear(32, 5))
    blocks = [Spectrum(), nn.Conv2d(1, 2, 1), tail]
    for block in blocks:
        block.meta = {"rows": None}
    return blocks


def groups(*windows):
    buffer = TemporalBuffer()
    for index, cut, activation in windows:
        buffer.add(TrainingWindow("a", "b", index, 1, cut, activation))
    return buffer.sample_batch(np.random.default_rng(0), 16)


def batch(groups, segments, config=PLAIN, two=True):
    return batch_of(groups, segments, 5, torch.Generator().manual_seed(0), config, two)


def test_neighbours_at_different_cuts_are_positives_and_later_windows_negatives():
    z = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    given = EmbeddingBatch(z, z, None, torch.tensor([0, 2, 50]), torch.zeros(3, dtype=torch.int64))
    _, parts = batch_loss(given, HybridLoss(HybridConfig(temperature=1.0, spread=None, laplacian=False)))
    total = 0.0
    for i, wanted in enumerate(([0, 1], [0, 1], [2])):
        scores = (z @ z[i]).tolist()
        total += math.log(sum(map(math.exp, scores)) / len(wanted)) - sum(scores[j] for j in wanted) / len(wanted)
    assert parts["task"] == pytest.approx(total / 3)


def test_what_may_or_may_not_be_the_same_is_no_negative():
    z = nn.functional.normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    loss = HybridLoss(HybridConfig(spread=None, laplacian=False))
    for apart, zero in ((8, True), (9, False)):
        _, parts = batch_loss(
            EmbeddingBatch(z, z, None, torch.tensor([0, apart]), torch.zeros(2, dtype=torch.int64)), loss
        )
        assert (parts["task"] == 0) == zero


def test_every_cut_gives_the_same_embedding(segments):
    sound = torch.rand(1, 16)
    image = segments[0](sound)
    windows = [(0, 0, sound), (20, 1, image), (40, 2, segments[1](image).detach())]
    found = batch(groups(*windows), segments)
    assert found.windows.tolist() == [0, 20, 40]
    assert torch.allclose(found.anchors, found.anchors[:1].expand(3, 5), atol=1e-2)
    assert torch.equal(found.anchors, found.positives)


def test_a_block_runs_once_for_all_windows_that_have_come_to_it(segments):
    image = segments[0](torch.rand(1, 16))
    windows = [(0, 2, segments[1](image).detach()), (20, 1, image), (40, 0, torch.rand(1, 16))]
    rows = []
    for place in (1, 2):
        segments[place].register_forward_pre_hook(
            lambda _block, given, place=place: rows.append((place, len(given[0])))
        )
    found = batch(groups(*windows), segments)
    assert rows == [(1, 4), (2, 6)]
    alone = {window[0]: batch(groups(window), segments).anchors[0] for window in windows}
    for window, embedding in zip(found.windows.tolist(), found.anchors, strict=True):
        assert torch.allclose(embedding, alone[window], atol=1e-6)


def test_waveforms_are_augmented_behind_the_blocks_that_never_change(segments):
    # Bands of a spectrum can only be masked where there is one; the waveform itself is left alone.
    banded = torch.arange(4.0).repeat_interleave(4)[None]
    config = AugmentConfig(time_mask=0, frequency_mask=1.0, gain_db=0, noise=0, mix=0, shift=0.5)
    seen = []
    segments[1].register_forward_pre_hook(lambda _block, given: seen.append(given[0]))
    batch(groups(*((10 * i, 0, banded) for i in range(8))), segments, config)
    (images,) = seen
    assert first_trainable(segments) == 1
    assert images.shape == (16, 1, 4, 4)
    assert (images.std(dim=3) == 0).all(), "a shifted waveform would have mixed the bands"
    assert len({tuple(image.flatten().tolist()) for image in images}) > 4


def test_one_view_is_embedded_where_no_task_asks_for_two(segments):
    rows = []
    segments[1].register_forward_pre_hook(lambda _block, given: rows.append(len(given[0])))
    found = batch(groups(*((i, 0, torch.rand(1, 16)) for i in range(4))), segments, AugmentConfig(), two=False)
    assert rows == [4]
    assert torch.equal(found.anchors, found.positives)


def test_the_second_view_can_be_another_encoders_and_has_no_gradient_then(segments):
    torch.manual_seed(1)
    keys = [segments[0], nn.Conv2d(1, 2, 1), nn.Sequential(nn.Flatten(), nn.Linear(32, 5))]
    for key, segment in zip(keys, segments, strict=True):
        key.meta = segment.meta
    given = groups(*((i, 0, torch.rand(1, 16)) for i in range(4)))
    usual, other = batch(given, segments), batch(given, keys)
    found = batch_of(given, segments, 5, torch.Generator().manual_seed(0), PLAIN, keys=keys)
    assert torch.allclose(found.anchors, usual.anchors, atol=1e-6)
    assert torch.allclose(found.positives, other.positives, atol=1e-6)
    assert not torch.allclose(found.positives, usual.positives, atol=1e-2)
    assert found.anchors.requires_grad
    assert not found.positives.requires_grad


def test_a_large_batch_is_computed_in_parts_with_the_same_gradients_and_less_in_memory(segments):
    given = groups(*((index, 0, torch.rand(1, 16)) for index in range(12)))

    def trained(in_memory):
        kept = []
        for block in segments:
            block.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda t: t):
            made = batch_of(given, segments, 5, torch.Generator().manual_seed(0), PLAIN, in_memory=in_memory)
        (made.anchors @ made.positives.T).sum().backward()
        return made, [parameter.grad.clone() for block in segments for parameter in block.parameters()], sum(kept)

    whole, gradients, memory = trained(12)
    parts, again, less = trained(4)
    assert torch.allclose(whole.anchors, parts.anchors, atol=1e-6)
    assert torch.allclose(whole.positives, parts.positives, atol=1e-6)
    for found, wanted in zip(again, gradients, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert less < memory / 2
