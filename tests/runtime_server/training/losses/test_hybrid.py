import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from runtime_edge.errors import UsageError
from runtime_server.training.losses import LOSSES, HybridConfig, HybridLoss
from runtime_server.training.losses.contrastive import info_nce
from runtime_server.training.losses.hybrid import SPREAD_TERMS
from runtime_server.training.losses.laplacian import dirichlet_energy, edge_weights, temporal_edges
from runtime_server.training.losses.sliced_wasserstein import sliced_wasserstein_to_uniform
from runtime_server.training.trainer import TrainConfig


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "embeddings": torch.randn(10, 6, generator=generator),
        "positives": torch.randn(10, 6, generator=generator),
        "windows": torch.arange(10) * 2,
        "chains": torch.tensor([0] * 5 + [1] * 5),
    }


def test_defaults_are_the_methods():
    config = HybridConfig()
    assert (config.lambda1, config.lambda2, config.spread, config.laplacian) == (0.1, 0.01, "sw", True)
    assert (config.temperature, config.projections, config.neighbours, config.horizon) == (0.1, 50, 5, 100)


def test_a_server_optimises_the_task_alone_unless_it_is_told_the_published_weights():
    task, hybrid = LOSSES["task"], LOSSES["hybrid"]
    assert (task.task, task.spread, task.laplacian) == (True, None, False)
    assert hybrid == HybridConfig(sigma=4.0)
    assert TrainConfig().loss == task


def test_total_is_the_weighted_sum_of_its_parts(batch):
    total, parts = HybridLoss(HybridConfig(lambda1=0.3, lambda2=0.2))(**batch)
    assert parts.keys() == {"task", "spread", "laplacian", "total"}
    assert all(value > 0 for value in parts.values())
    assert total.item() == pytest.approx(parts["task"] + 0.3 * parts["spread"] + 0.2 * parts["laplacian"], rel=1e-5)
    assert total.item() == pytest.approx(parts["total"])


def test_parts_are_those_of_the_normalised_embeddings(batch):
    _, parts = HybridLoss()(**batch)
    z, views = normalize(batch["embeddings"], dim=1), normalize(batch["positives"], dim=1)
    assert parts["task"] == pytest.approx(cross_entropy(z @ views.T * 10, torch.arange(10)).item(), rel=1e-5)
    # Five windows of one device with k = 5 are all joined to each other.
    within = [(z[i] - z[j]).square().sum().item() for s in (0, 5) for i in range(s, s + 5) for j in range(s, i)]
    assert parts["laplacian"] == pytest.approx(np.mean(within), rel=1e-5)


def test_every_setting_reaches_its_term(batch):
    z, views = normalize(batch["embeddings"], dim=1), normalize(batch["positives"], dim=1)
    config = HybridConfig(temperature=0.5, projections=7, neighbours=1, horizon=5, sigma=3.0, seed=4)
    ignore = torch.rand(10, 10, generator=torch.Generator().manual_seed(1)) < 0.3
    _, parts = HybridLoss(config)(**batch, ignore=ignore)
    edges = temporal_edges(batch["windows"], batch["chains"], 1, 5)
    energy = dirichlet_energy(z, edges, edge_weights(edges, batch["windows"], 3.0))
    spread = sliced_wasserstein_to_uniform(z, torch.Generator().manual_seed(4), 7)
    assert parts["task"] == pytest.approx(info_nce(z, views, None, 0.5, ignore).item())
    assert parts["spread"] == pytest.approx(spread.item())
    assert parts["laplacian"] == pytest.approx(energy.item())


@pytest.mark.parametrize("spread", [*SPREAD_TERMS, None])
@pytest.mark.parametrize("laplacian", [True, False])
def test_ablations_leave_out_what_they_say(batch, spread, laplacian):
    _, parts = HybridLoss(HybridConfig(spread=spread, laplacian=laplacian))(**batch)
    assert ("spread" in parts) == (spread is not None)
    assert ("laplacian" in parts) == laplacian


def test_a_term_can_stand_alone(batch):
    _, parts = HybridLoss(HybridConfig(task=False, laplacian=False))(**batch)
    assert parts.keys() == {"spread", "total"}


def test_matches_are_positives(batch):
    z, views = normalize(batch["embeddings"], dim=1), normalize(batch["positives"], dim=1)
    matches = torch.rand(10, 10, generator=torch.Generator().manual_seed(1)) < 0.3
    _, parts = HybridLoss()(**batch, matches=matches)
    assert parts["task"] == pytest.approx(info_nce(z, views, matches=matches).item())


def test_same_seed_same_sequence(batch):
    def run(seed):
        loss = HybridLoss(HybridConfig(seed=seed))
        return [loss(**batch)[1]["spread"] for _ in range(3)]

    assert run(1) == run(1) != run(2)
    assert len(set(run(1))) == 3


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("spread", SPREAD_TERMS)
def test_gradients_are_finite_for_identical_embeddings_and_tiny_batches(count, spread):
    z = torch.ones(count, 4, requires_grad=True)
    where = torch.arange(count)
    total, _ = HybridLoss(HybridConfig(spread=spread))(z, positives=z, windows=where, chains=torch.zeros_like(where))
    total.backward()
    assert total.isfinite()
    assert z.grad.isfinite().all()


def test_nothing_to_learn_from_is_zero_and_still_differentiable():
    z = torch.ones(2, 3, requires_grad=True)
    total, parts = HybridLoss(HybridConfig(spread=None))(z)
    total.backward()
    assert parts == {"total": 0.0}
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize(
    ("field", "value"),
    [("spread", "l2"), ("lambda1", -1), ("lambda2", float("nan")), ("temperature", 0), ("sigma", -2.0)],
)
def test_a_bad_setting_is_named(field, value):
    with pytest.raises(UsageError, match=field):
        HybridConfig(**{field: value})


def test_an_empty_batch_is_refused():
    with pytest.raises(UsageError, match="n >= 1"):
        HybridLoss()(torch.empty(0, 4))
