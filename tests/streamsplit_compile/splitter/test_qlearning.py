"""The learner finds the solution of an environment solved by hand, and that of value iteration elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_edge.formats.records.table import StateAxis
from streamsplit_compile.splitter.policies import rows_of
from streamsplit_compile.splitter.qlearning import (
    Array,
    QLearningConfig,
    States,
    estimate_model,
    fill_unvisited,
    geometric_edges,
    q_learning,
    quantile_edges,
    value_iteration,
)

# Two states, two actions, discount 1/2. The best policy takes action 0 in state 0 and action 1 in state 1, so
# V0 = 1 + (0.9 V0 + 0.1 V1) / 2 and V1 = 2 + (0.2 V0 + 0.8 V1) / 2, so V0 = 28/13 and V1 = 48/13; the
# other action costs its immediate loss of 1 and 2.
TRANSITION = np.array([[0.9, 0.1], [0.2, 0.8]])
REWARD = np.array([[1.0, 0.0], [0.0, 2.0]])
SOLUTION = np.array([[28 / 13, 15 / 13], [22 / 13, 48 / 13]])


def walk(transition: Array, traces: int, windows: int, seed: int) -> States:
    random = np.random.default_rng(seed)
    states = np.empty((traces, windows), np.int64)
    states[:, 0] = random.integers(len(transition), size=traces)
    bounds = transition.cumsum(1)
    for window in range(1, windows):
        draw = random.random(traces)
        states[:, window] = (draw[:, None] >= bounds[states[:, window - 1]]).sum(1)
    return np.minimum(states, len(transition) - 1)


def test_value_iteration_solves_the_small_environment() -> None:
    assert value_iteration(TRANSITION, REWARD, 0.5) == pytest.approx(SOLUTION, abs=1e-8)


def test_the_learner_solves_the_small_environment() -> None:
    states = walk(TRANSITION, 64, 400, seed=0)
    random = np.random.default_rng(1)
    rewards = REWARD[states] + random.normal(0, 0.3, (*states.shape, 2))
    q, visits = q_learning(states, rewards, 2, QLearningConfig(gamma=0.5, epochs=6))
    assert q == pytest.approx(SOLUTION, abs=0.06)
    assert visits.tolist() == [6 * (states[:, :-1] == state).sum() for state in (0, 1)]
    assert q.argmax(1).tolist() == value_iteration(TRANSITION, REWARD, 0.5).argmax(1).tolist() == [0, 1]


def test_value_iteration_weighs_where_an_action_leads() -> None:
    """Solved by hand: action 1 gives nothing now but leads to state 1, worth 3 for ever (discount 1/2: 6)."""
    transition = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    reward = np.array([[1.0, 0.0], [3.0, 3.0]])
    assert value_iteration(transition, reward, 0.5) == pytest.approx(np.array([[2.5, 3.0], [6.0, 6.0]]), abs=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_learner_and_value_iteration_agree_on_a_random_environment(gamma: float) -> None:
    random = np.random.default_rng(5)
    transition = random.dirichlet(np.ones(6), size=6)
    means = random.uniform(-1, 1, (6, 4))
    states = walk(transition, 128, 300, seed=6)
    rewards = means[states] + random.normal(0, 0.2, (*states.shape, 4))

    q, _ = q_learning(states, rewards, 6, QLearningConfig(gamma=gamma, epochs=10))
    exact = value_iteration(*estimate_model(states, rewards, 6)[:2], gamma)

    assert q.argmax(1).tolist() == exact.argmax(1).tolist()
    assert q - q.max(1, keepdims=True) == pytest.approx(exact - exact.max(1, keepdims=True), abs=0.08)
    assert np.abs(q - exact).max() <= 0.05 / (1 - gamma)


def test_the_estimated_model_is_that_of_the_process() -> None:
    states = walk(TRANSITION, 200, 500, seed=2)
    transition, reward, visits = estimate_model(states, REWARD[states], 3)
    assert transition[:2, :2] == pytest.approx(TRANSITION, abs=0.01)
    assert transition[2].tolist() == [0.0, 0.0, 1.0]  # never seen: leads to itself
    assert reward[:2] == pytest.approx(REWARD)
    assert visits.tolist() == [(states == 0).sum(), (states == 1).sum(), 0]


def test_actions_are_compared_on_the_same_windows() -> None:
    """Noise that all actions share does not blur their order, however few windows there are."""
    states = walk(TRANSITION, 2, 40, seed=3)
    shared = np.random.default_rng(4).normal(0, 50.0, (*states.shape, 1))
    q, _ = q_learning(states, REWARD[states] + shared, 2, QLearningConfig(gamma=0.5, epochs=3))
    assert q[:, 0] - q[:, 1] == pytest.approx([1.0, -2.0], abs=1e-3)


def test_rows_are_those_of_the_table() -> None:
    axes = (StateAxis(name="cpu", edges=(0.5,)), StateAxis(name="rtt_ms", edges=(10.0, 20.0)))
    observed = {"cpu": np.array([[0.1, 0.5, 0.9]]), "rtt_ms": np.array([[25.0, 10.0, 1.0]])}
    assert rows_of(observed, axes).tolist() == [[2, 4, 3]]


def test_quantile_edges_split_evenly_and_never_repeat() -> None:
    values = np.random.default_rng(0).lognormal(size=4000)
    edges = quantile_edges(values, 5)
    assert len(edges) == 4
    assert np.bincount(np.digitize(values, edges)) == pytest.approx(np.full(5, 800), abs=10)
    assert quantile_edges(np.array([1.0] * 9 + [2.0]), 4) == (1.0,)


def test_geometric_edges_have_equal_ratios_inside_the_values() -> None:
    values = np.random.default_rng(0).lognormal(size=4000)
    edges = np.array(geometric_edges(values, 6))
    assert len(edges) == 5
    assert np.quantile(values, (0.05, 0.95)) == pytest.approx(edges[[0, -1]], abs=1e-3)
    assert np.diff(np.log(edges)) == pytest.approx(np.full(4, np.log(edges[-1] / edges[0]) / 4), abs=5e-3)
    assert geometric_edges(np.full(9, 2.0), 4) == (2.0,)


def test_unvisited_states_take_the_row_of_the_nearest_visited_one() -> None:
    q = np.array([[0.0], [1.0], [0.0], [0.0], [4.0], [0.0]])
    visited = np.array([False, True, False, False, True, False])
    assert fill_unvisited(q, visited, (6,)).ravel().tolist() == [1, 1, 1, 4, 4, 4]


def test_nearness_is_counted_in_bins_of_every_axis() -> None:
    visited = np.zeros((3, 4), bool)
    visited[0, 0] = visited[2, 3] = True
    q = np.arange(12.0)[:, None]
    filled = fill_unvisited(q, visited.ravel(), (3, 4)).reshape(3, 4)
    assert filled.tolist() == [[0, 0, 0, 11], [0, 0, 11, 11], [0, 11, 11, 11]]
    assert fill_unvisited(q, np.zeros(12, bool), (3, 4)) is q
