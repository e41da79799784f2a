import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from runtime_server.training.losses.contrastive import info_nce


def batch(count=6, width=5, virtual=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, width), (count, width), (count, virtual, width))
    return tuple(normalize(torch.randn(*s, generator=generator, dtype=torch.float64), dim=-1) for s in shapes)


def explicit(anchors, positives, negatives, temperature, ignore=None):
    total = 0.0
    for i, anchor in enumerate(anchors.tolist()):
        candidates = [positives[i].tolist()]
        for j in range(len(anchors)):
            if j != i and not (ignore is not None and ignore[i, j]):
                candidates.append(positives[j].tolist())
        candidates += negatives[i].tolist() if negatives is not None else []
        dots = [sum(a * b for a, b in zip(anchor, c, strict=True)) for c in candidates]
        scores = [math.exp(dot / temperature) for dot in dots]
        total -= math.log(scores[0] / sum(scores))
    return total / len(anchors)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("with_virtual", [True, False])
@pytest.mark.parametrize("with_ignore", [True, False])
def test_equals_an_explicit_loop(temperature, with_virtual, with_ignore):
    anchors, positives, virtual = batch()
    negatives = virtual if with_virtual else None
    ignore = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.4 if with_ignore else None
    expected = explicit(anchors, positives, negatives, temperature, ignore)
    assert info_nce(anchors, positives, negatives, temperature, ignore).item() == pytest.approx(expected)


def test_without_virtual_negatives_is_cross_entropy_at_temperature_a_tenth():
    anchors, positives, _ = batch()
    expected = cross_entropy(anchors @ positives.T * 10, torch.arange(6))
    torch.testing.assert_close(info_nce(anchors, positives), expected)


def test_gradient_is_that_of_finite_differences():
    anchors, positives, negatives = batch(3, 3, 2)
    inputs = tuple(t.requires_grad_() for t in (anchors, positives))
    assert torch.autograd.gradcheck(lambda a, p: info_nce(a, p, negatives, 0.5), inputs)


def test_a_batch_of_one_without_negatives_is_zero():
    z = torch.eye(3)[:1].requires_grad_()
    loss = info_nce(z, z)
    loss.backward()
    assert loss.item() == 0
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_identical_embeddings_give_the_log_of_the_candidates(count):
    z = torch.eye(4)[:1].repeat(count, 1).requires_grad_()
    loss = info_nce(z, z, z.detach()[:, None].repeat(1, 7, 1), ignore=torch.zeros(count, count, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(count + 7))
    assert z.grad.isfinite().all()


def test_ignoring_every_other_leaves_the_own_positive():
    anchors, positives, _ = batch()
    assert info_nce(anchors, positives, ignore=torch.ones(6, 6, dtype=torch.bool)).item() == 0


def test_several_positives_are_the_mean_over_them():
    anchors, positives, virtual = batch()
    matches = torch.zeros(6, 6, dtype=torch.bool)
    matches[0, 3] = matches[0, 4] = matches[5, 1] = True
    ignore = torch.zeros(6, 6, dtype=torch.bool)
    ignore[0, 3] = ignore[0, 2] = True  # what matches is not ignored
    total = 0.0
    for i in range(6):
        seen = [j for j in range(6) if not (i == 0 and j == 2)]
        scores = torch.cat([positives[seen], virtual[i]]) @ anchors[i] / 0.3
        wanted = [j for j in range(6) if j == i or matches[i, j]]
        total -= sum((positives[j] @ anchors[i] / 0.3 - scores.logsumexp(0)).item() for j in wanted) / len(wanted)
        total -= math.log(len(wanted))
    assert info_nce(anchors, positives, virtual, 0.3, ignore, matches).item() == pytest.approx(total / 6)
