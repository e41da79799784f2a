import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import laplacian

from runtime_server.training.losses.laplacian import dirichlet_energy, edge_weights, temporal_edges


def tensors(windows, chains=None):
    return torch.tensor(windows), torch.tensor(chains if chains is not None else [0] * len(windows))


def pairs(edges):
    return set(map(tuple, edges.T.tolist()))


def reference_edges(windows, chains, neighbours, horizon):
    edges = set()
    for i, (t, c) in enumerate(zip(windows, chains, strict=True)):
        newest = max(w for w, d in zip(windows, chains, strict=True) if d == c)
        others = [
            (abs(t - w), j)
            for j, (w, d) in enumerate(zip(windows, chains, strict=True))
            if d == c and j != i and newest - w < horizon and newest - t < horizon
        ]
        edges |= {(min(i, j), max(i, j)) for _, j in sorted(others)[:neighbours]}
    return edges


def test_edges_join_nearest_available_windows_across_gaps():
    assert pairs(temporal_edges(*tensors([0, 1, 2, 50, 51]), neighbours=1)) == {(0, 1), (1, 2), (3, 4)}
    assert (2, 3) in pairs(temporal_edges(*tensors([0, 1, 2, 50, 51]), neighbours=2))


def test_edges_never_cross_devices():
    edges = temporal_edges(*tensors([0, 0, 1, 1, 2, 2], [7, 3, 7, 3, 7, 3]))
    assert pairs(edges) == {(0, 2), (0, 4), (2, 4), (1, 3), (1, 5), (3, 5)}


def test_windows_beyond_the_horizon_stay_out():
    assert pairs(temporal_edges(*tensors([0, 1, 100, 101]), horizon=100)) == {(2, 3)}
    assert pairs(temporal_edges(*tensors([0, 99]), horizon=100)) == {(0, 1)}


@pytest.mark.parametrize("seed", range(5))
def test_edges_equal_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    windows, chains = rng.choice(160, 60).tolist(), rng.integers(3, size=60).tolist()
    edges = temporal_edges(*tensors(windows, chains), neighbours=4, horizon=100)
    assert pairs(edges) == reference_edges(windows, chains, 4, 100)
    assert edges.shape[1] == len(pairs(edges))


@pytest.mark.parametrize("sigma", [None, 3.0])
def test_energy_is_the_trace_with_scipys_graph_laplacian(sigma):
    rng = np.random.default_rng(0)
    windows, chains = tensors(rng.choice(90, 30, replace=False).tolist(), rng.integers(2, size=30).tolist())
    z = torch.tensor(rng.standard_normal((30, 6)))
    edges = temporal_edges(windows, chains)
    weights = edge_weights(edges, windows, sigma)
    (i, j), t, points = edges.numpy(), windows.numpy(), z.numpy()
    w = np.ones(len(i)) if sigma is None else np.exp(-np.abs(t[i] - t[j]) / sigma)
    adjacency = coo_array((np.r_[w, w], (np.r_[i, j], np.r_[j, i])), shape=(30, 30)).toarray()
    trace = np.trace(points.T @ laplacian(adjacency) @ points)
    ordered = (adjacency * np.square(points[:, None] - points[None]).sum(-1)).sum()
    assert ordered == pytest.approx(2 * trace)
    assert dirichlet_energy(z, edges, weights).item() == pytest.approx(trace / len(i), rel=1e-6)


def test_gradient_is_that_of_finite_differences():
    windows, chains = tensors([0, 1, 3, 9])
    edges = temporal_edges(windows, chains, neighbours=2)
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dirichlet_energy(x, edges, edge_weights(edges, windows)), (z,))


@pytest.mark.parametrize("windows", [[], [4], [4, 4], [4, 4, 4]])
def test_tiny_batches_and_identical_windows_are_safe(windows):
    z = torch.ones(len(windows), 3, requires_grad=True)
    edges = temporal_edges(torch.tensor(windows, dtype=torch.int64), torch.zeros(len(windows), dtype=torch.int64))
    energy = dirichlet_energy(z, edges, edge_weights(edges, torch.tensor(windows), 2.0))
    energy.backward()
    assert energy.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))
