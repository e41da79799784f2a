"""Tabular Q-learning over many traces at once, and the exact optimum to check it against.

States come from the traces alone: the device's choices change neither its link nor its load, so the next state does not
depend on the action, and the same traces serve every policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
States = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QLearningConfig:
    """Settings of Q-learning."""

    gamma: float = 0.5
    """Discount. Actions do not change the state, so it does not affect the optimum; a high one only adds noise."""
    epochs: int = 2
    """Passes over the traces."""
    min_visits: int = 5
    """A state that occurs less often counts as not visited."""


def quantile_edges(values: Array, bins: int) -> tuple[float, ...]:
    """Edges that put about equally many of `values` in each bin; fewer where many values are equal."""
    edges = np.unique(np.round(np.quantile(values, np.arange(1, bins) / bins), 3))
    return tuple(float(edge) for edge in edges)


def geometric_edges(values: Array, bins: int) -> tuple[float, ...]:
    """Edges in equal ratios between the 5 % and 95 % quantiles, for bandwidth: delay is proportional to its inverse."""
    low, high = np.quantile(values, (0.05, 0.95))
    if not 0 < low < high:
        return quantile_edges(values, bins)
    return tuple(float(edge) for edge in np.unique(np.round(np.geomspace(low, high, bins - 1), 3)))


def q_learning(
    states: States, rewards: Array, n_states: int, settings: QLearningConfig
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Tabular Q-learning, all traces in step.

    states: (trace, window). rewards: (trace, window, action). Returns Q (state, action) and visits (state,).
    The reward of every action in a window is known, so every action of a state is updated at each visit: there is
    nothing to explore, and actions are compared on the same windows. If several traces are in the same state, their
    targets are averaged and count as that many visits. The step size after n visits is 1 / (1 + (1 - gamma) n), which
    forgets the start as fast as it averages.
    """
    windows, actions = rewards.shape[1:]
    q, visits = np.zeros((n_states, actions)), np.zeros(n_states)
    for step in range(settings.epochs * (windows - 1)):
        window = step % (windows - 1)
        state = states[:, window]
        target = rewards[:, window] + settings.gamma * q[states[:, window + 1]].max(1)[:, None]
        touched, place, count = np.unique(state, return_inverse=True, return_counts=True)
        mean = np.zeros((len(touched), actions))
        np.add.at(mean, place, target / count[place][:, None])
        visits[touched] += count
        rate = 1 - (1 - 1 / (1 + (1 - settings.gamma) * visits[touched])) ** count
        q[touched] += rate[:, None] * (mean - q[touched])
    return q, visits.astype(np.int64)


def estimate_model(states: States, rewards: Array, n_states: int) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """The discretised process in the traces: transitions (state, next), mean reward (state, action), visits.

    A state without a successor in the traces leads to itself.
    """
    actions = rewards.shape[2]
    here, there = states[:, :-1].ravel(), states[:, 1:].ravel()
    moves = np.bincount(here * n_states + there, minlength=n_states**2)
    counts = moves.reshape(n_states, n_states).astype(np.float64)
    dead_end = counts.sum(1) == 0
    counts[dead_end, dead_end] = 1
    visits = np.bincount(states.ravel(), minlength=n_states)
    sums = np.stack(
        [np.bincount(states.ravel(), rewards[..., a].ravel(), minlength=n_states) for a in range(actions)], 1
    )
    return counts / counts.sum(1, keepdims=True), sums / np.maximum(visits, 1)[:, None], visits


def value_iteration(transition: Array, reward: Array, gamma: float, tolerance: float = 1e-9) -> Array:
    """The exact Q of a known process, (state, action).

    transition: (state, next) when the action does not matter, else (state, action, next).
    reward: (state, action).
    """
    q, change = np.zeros_like(reward), np.inf
    while change > tolerance * (1 - gamma):
        future = transition @ q.max(1)
        updated = reward + gamma * (future if future.ndim == 2 else future[:, None])
        change = float(np.abs(updated - q).max())
        q = updated
    return np.asarray(q, np.float64)


def fill_unvisited(q: Array, visited: npt.NDArray[np.bool_], bins: Sequence[int]) -> Array:
    """Give every state that was not visited the row of the nearest one that was (fewest bins apart).

    Of equally near rows the one with the closest row number is taken, the lower first. Along one axis this keeps Q
    monotone if the visited rows are.
    """
    if visited.all() or not visited.any():
        return q
    place = np.stack(np.unravel_index(np.arange(len(q)), tuple(bins)), 1)
    sources = np.flatnonzero(visited)
    filled: Array = q.copy()
    for state in np.flatnonzero(~visited):
        apart = np.abs(place[sources] - place[state]).sum(1)
        nearest = sources[apart == apart.min()]
        filled[state] = q[nearest[np.abs(nearest - state).argmin()]]
    return filled
