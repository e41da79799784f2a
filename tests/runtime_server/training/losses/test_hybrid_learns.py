"""The objective as a whole: on unlabelled, temporally coherent data it must make classes separable."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from runtime_edge.policy.memory import GaussianMemory
from runtime_server.training.augment import AugmentConfig, augment
from runtime_server.training.embedding_metrics import effective_rank, knn_accuracy
from runtime_server.training.losses import HybridConfig, HybridLoss

pytestmark = pytest.mark.integration

CLASSES, WIDTH, DIM = 6, 32, 16


def stream(windows, seed):
    """A device's activations [n, 32] and hidden labels: a class stays for a while, nuisance is louder."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0]
    labels = np.repeat(rng.integers(CLASSES, size=windows // 10 + 1), 10)[:windows]
    signal = 1.5 * basis[labels] + 0.1 * rng.standard_normal((windows, WIDTH))
    nuisance = 2.0 * rng.standard_normal((windows, 12)) @ basis[12:24]
    return torch.tensor(signal + nuisance, dtype=torch.float32), torch.tensor(labels)


def train(config, steps=200, devices=4):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, DIM))
    streams = [stream(400, seed)[0] for seed in range(1, devices + 1)]
    held_out, labels = stream(400, 99)

    def quality():
        with torch.no_grad():
            z = normalize(encoder(held_out), dim=1)
        return knn_accuracy(z, labels, 5), effective_rank(z)

    before = quality()
    loss, generator, rng = HybridLoss(config), torch.Generator().manual_seed(0), np.random.default_rng(0)
    memory = GaussianMemory(components=16, dim=DIM)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    for _ in range(steps):
        where = [np.sort(rng.choice(np.arange(s, s + 100), 16, replace=False)) for s in rng.integers(300, size=devices)]
        anchors = torch.cat([x[w] for x, w in zip(streams, where, strict=True)])
        adjacent = torch.cat([x[np.clip(w + 1, 0, 399)] for x, w in zip(streams, where, strict=True)])
        windows = torch.tensor(np.concatenate(where))
        chains = torch.arange(devices).repeat_interleave(16)
        z = normalize(encoder(anchors), dim=1)
        views = encoder(augment(adjacent, generator, AugmentConfig()))
        near = (chains[:, None] == chains[None]) & ((windows[:, None] - windows[None]).abs() < 10)
        memory.update(z.detach()[::8].numpy())
        negatives = torch.tensor(memory.sample_negatives(z.detach().numpy(), 8, rng))
        total, _ = loss(z, positives=views, negatives=negatives, ignore=near, windows=windows, chains=chains)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return before, quality()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_hybrid_loss_raises_knn_accuracy_and_does_not_collapse():
    (accuracy, _), (learned, rank) = train(HybridConfig())
    assert accuracy < 0.5
    assert learned > 0.9
    assert rank > 6


def test_affinity_alone_collapses_and_diversity_prevents_it():
    pull = {"lambda2": 5.0}
    _, (_, with_spread) = train(HybridConfig(**pull, lambda1=20.0), steps=100)
    _, (_, without) = train(HybridConfig(**pull, spread=None), steps=100)
    assert without < 0.8 * with_spread
