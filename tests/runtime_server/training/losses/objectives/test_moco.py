"""MoCo against a numpy queue and a numpy momentum encoder."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from runtime_edge.errors import UsageError
from runtime_server.training.losses.objectives.interface import NEARBY, Views
from runtime_server.training.losses.objectives.moco import MoCo

WIDTH = 4


@pytest.fixture
def segments():
    """A block that nothing trains, and two that are."""
    torch.manual_seed(0)
    front = nn.Linear(3, 3).requires_grad_(False)
    return [front, nn.Linear(3, 8), nn.Linear(8, WIDTH)]


def moco(segments=(), **settings):
    return MoCo(segments, **{"width": WIDTH, "temperature": 0.2, "seed": 0, **settings})


def batch(seed, count=3, windows=None, chain=None):
    """Of a device of its own unless `chain` is given."""
    rng = np.random.default_rng(seed)
    first, second = (
        normalize(torch.tensor(rng.standard_normal((count, WIDTH)), dtype=torch.float32), dim=1) for _ in range(2)
    )
    places = torch.arange(count) * 100 if windows is None else torch.tensor(windows)
    return Views(first, second, windows=places, chains=torch.full((count,), seed if chain is None else chain))


def reference(anchors, keys, queue, temperature):
    """Equation 1 of He et al. 2020, by a loop."""
    total = 0.0
    for anchor, key in zip(anchors, keys, strict=True):
        scores = np.exp(np.array([anchor @ key, *(anchor @ other for other in queue)]) / temperature)
        total -= np.log(scores[0] / scores.sum())
    return total / len(anchors)


def test_negatives_are_the_last_keys_and_not_the_batch():
    objective, queue = moco(keys=7), []
    for seed in range(6):
        views = batch(seed)
        expected = reference(views.anchors.numpy(), views.positives.numpy(), queue, 0.2)
        assert objective(views).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        queue = [*views.positives.numpy(), *queue][:7]
    assert np.array_equal(objective.queue.numpy(), np.array(queue))


def test_keys_near_an_anchor_in_time_are_none_of_its_negatives():
    objective = moco()
    earlier = batch(1, 3, windows=[0, 50, 100], chain=5)
    objective(earlier)
    now = batch(2, 1, windows=[50 + NEARBY], chain=5)
    far = earlier.positives.numpy()[[0, 2]]
    assert copy.deepcopy(objective)(now).item() == pytest.approx(
        reference(now.anchors.numpy(), now.positives.numpy(), far, 0.2), rel=1e-5
    )
    elsewhere = batch(2, 1, windows=[50 + NEARBY], chain=6)
    assert objective(elsewhere).item() == pytest.approx(
        reference(now.anchors.numpy(), now.positives.numpy(), earlier.positives.numpy(), 0.2), rel=1e-5
    )


def test_anchors_have_a_gradient_and_keys_have_none():
    objective = moco()
    objective(batch(0))
    views = batch(1)
    views.anchors.requires_grad_()
    views.positives.requires_grad_()
    objective(views).backward()
    assert views.anchors.grad.abs().sum() > 0
    assert views.positives.grad is None
    assert not objective.queue.requires_grad


def test_the_momentum_encoder_follows_slowly_and_is_not_trained(segments):
    objective = moco(segments, momentum=0.75)
    assert not [parameter for parameter in objective.parameters() if parameter.requires_grad]
    expected = {name: value.detach().clone().numpy() for name, value in segments[2].named_parameters()}
    for _ in range(3):
        with torch.no_grad():
            for parameter in segments[2].parameters():
                parameter += 1.0
        objective.after_step()
        for name, value in segments[2].named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * value.detach().numpy()
    copied = dict(objective.key_segments[2].named_parameters())
    assert all(np.allclose(copied[name].numpy(), value, atol=1e-6) for name, value in expected.items())


def test_only_what_is_trained_is_copied(segments):
    objective = moco(segments)
    assert objective.key_segments[0] is segments[0]
    assert all(objective.key_segments[place] is not segments[place] for place in (1, 2))
    kept = {name for name in objective.state_dict() if name.startswith("encoder.")}
    assert kept == {f"encoder.{place}.{what}" for place in (0, 1) for what in ("weight", "bias")}


def test_weights_that_blocks_share_are_shared_in_the_copy():
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    second.weight = first.weight
    keys = moco([first, second]).key_segments
    assert keys[0].weight is keys[1].weight is not first.weight


def test_a_batch_that_exploded_does_not_stay_in_the_queue():
    objective, views = moco(), batch(0)
    objective(views)
    kept = objective.queue.clone()
    broken = batch(1)
    broken.positives[1, 0] = float("nan")
    assert not objective(broken).isfinite()
    assert torch.equal(objective.queue, kept)
    assert objective(batch(2)).isfinite()


def test_a_queue_needs_to_know_what_is_near():
    with pytest.raises(UsageError, match="chain of each window"):
        moco()(Views(batch(0).anchors, batch(0).positives))
