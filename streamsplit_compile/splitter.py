"""Training a splitter table, and comparing one with baselines and the exact optimum (METHOD section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.table import Reward, SplitterTable, StateAxis, StateName, cuts_digest
from streamsplit_compile.environment import (
    ActionCosts,
    Environment,
    Outcome,
    environment_for,
    heuristic_rule,
    simulate,
)
from streamsplit_compile.qlearning import (
    Array,
    Learning,
    States,
    estimate_model,
    fill_unvisited,
    q_learning,
    quantile_edges,
    rows_of,
    value_iteration,
)
from streamsplit_compile.targets import Target
from streamsplit_compile.traces import STEP_S, TraceModel, Traces, observe, synthetic_traces

STATE: tuple[StateName, ...] = ("uncertainty", "cpu", "bandwidth_mbps", "rtt_ms")
GRIDS = ((4, 4, 8, 3), (3, 3, 6, 3), (3, 3, 5, 2), (2, 2, 4, 2))
"""Bins of each state variable; the first grid whose table has at most MAX_CELLS numbers is taken."""
MAX_CELLS = 6500
"""At up to nine characters a number this leaves room for the other fields in 64 KiB."""


@dataclass(frozen=True)
class Evaluation:
    """A table on traces. Rewards are means over windows."""

    reward: float
    fixed: dict[str, float]
    """Reward of always taking one action."""
    rule: float
    """Reward of the heuristic rule."""
    optimum: float
    """Reward of the best policy on the same bins, by value iteration on these very traces."""
    regret: float
    """(optimum - reward) / (optimum - best fixed): 0 is optimal, 1 no better than the best fixed action.

    Where hardly anything can be gained over the best fixed action, the loss is measured against 1 % of what
    full agreement is worth (alpha).
    """
    latency_ms: float
    latency_p95_ms: float
    energy_mj: float
    mb_per_hour: float
    changes_per_minute: float

    @property
    def best_fixed(self) -> str:
        """The name of the best fixed action."""
        return max(self.fixed, key=self.fixed.__getitem__)

    def metrics(self) -> dict[str, float]:
        """The numbers a table file carries, rounded."""
        values = {
            "reward": self.reward,
            "best_fixed": self.fixed[self.best_fixed],
            "rule": self.rule,
            "optimum": self.optimum,
            "regret": self.regret,
            "latency_ms": self.latency_ms,
            "latency_p95_ms": self.latency_p95_ms,
            "energy_mj": self.energy_mj,
            "mb_per_hour": self.mb_per_hour,
            "changes_per_minute": self.changes_per_minute,
        }
        return {name: round(value, 4) for name, value in values.items()}


def train_table(
    costs: Sequence[ActionCosts],
    target: Target,
    *,
    encoder: str,
    cut_names: Sequence[str],
    reward: Reward | None = None,
    seed: int = 0,
    traces: Traces | None = None,
    held_out: Traces | None = None,
    axes: Sequence[StateAxis] | None = None,
    learning: Learning | None = None,
    hysteresis: float = 0.1,
    probe_rate: float = 0.02,
    created_by: str = "ssc splitter train",
) -> SplitterTable:
    """Learn a table by Q-learning on traces and measure it on others.

    costs: the actions in the order of `cut_names` (all cuts of the bundle), `local` last. Without traces,
    synthetic ones are drawn from `seed`; without axes, bins come from quantiles of the training traces. The
    same arguments give the same bytes. Raises UsageError for actions that make no sense, TableError when they
    do not fit the cuts or the table is too large.
    """
    environment = environment_for(costs, target, reward if reward is not None else Reward())
    traces = traces if traces is not None else synthetic_traces(TraceModel(), 1024, 400, seed)
    if held_out is None:
        held_out = synthetic_traces(TraceModel(), 128, 600, seed + 1_000_003)
    observed = observe(traces)
    axes = tuple(axes) if axes is not None else _quantile_axes(observed, len(costs))
    q = _learn(environment, traces, rows_of(observed, axes), axes, learning or Learning(), seed)
    table = SplitterTable(
        target=target.name,
        encoder=encoder,
        created_by=created_by,
        actions=tuple(action.name for action in environment.actions),
        action_bytes=tuple(action.bytes for action in environment.actions),
        state=axes,
        reward=environment.reward,
        hysteresis=hysteresis,
        probe_rate=probe_rate,
        costs_digest=environment.digest,
        bundle_cuts=cuts_digest(cut_names),
        metrics={},
        policy=tuple(int(best) for best in q.argmax(1)),
        q=tuple(tuple(float(value) for value in row) for row in q),
    )
    table.check_cuts(cut_names)
    table = msgspec.structs.replace(table, metrics=evaluate(table, environment, held_out).metrics())
    table.to_json()  # raises when it is too large for a device
    return table


def evaluate(table: SplitterTable, environment: Environment, traces: Traces) -> Evaluation:
    """Play a table, with its hysteresis and without probes, against the baselines and the exact optimum."""
    observed = observe(traces)
    rows = rows_of(observed, table.state)
    outcome = simulate(environment, traces)
    chosen = play(table, rows)
    transition, mean_reward, _ = estimate_model(rows, outcome.reward, len(table.q))
    optimum = _mean(outcome.reward, value_iteration(transition, mean_reward, 0.0).argmax(1)[rows])
    fixed = {a.name: float(outcome.reward[..., i].mean()) for i, a in enumerate(environment.actions)}
    reward = _mean(outcome.reward, chosen)
    return Evaluation(
        reward=reward,
        fixed=fixed,
        rule=_mean(outcome.reward, heuristic_rule(environment, traces)),
        optimum=optimum,
        regret=(optimum - reward) / max(optimum - max(fixed.values()), 0.01 * table.reward.alpha, 1e-9),
        **_consequences(environment, outcome, chosen),
    )


def play(table: SplitterTable, rows: States) -> States:
    """Actions a device takes in the rows (trace, window), with the table's hysteresis, as `Splitter` does."""
    q = np.asarray(table.q)
    trace = np.arange(len(rows))
    current = q[rows[:, 0]].argmax(1)
    chosen = np.empty_like(rows)
    for window in range(rows.shape[1]):
        values = q[rows[:, window]]
        best = values.argmax(1)
        better = values[trace, best] - values[trace, current] > table.hysteresis
        current = np.where(better, best, current)
        chosen[:, window] = current
    return chosen


def _learn(
    environment: Environment,
    traces: Traces,
    rows: States,
    axes: Sequence[StateAxis],
    learning: Learning,
    seed: int,
) -> Array:
    """Q of every row, (state, action), rounded to what a table file holds."""
    bins = [len(axis.edges) + 1 for axis in axes]
    rewards = simulate(environment, traces).reward
    q, visits = q_learning(rows, rewards, math.prod(bins), learning, np.random.default_rng(seed))
    filled = fill_unvisited(q, visits.min(1) >= learning.min_visits, bins)
    return np.asarray(np.round(filled, 3) + 0.0, np.float64)  # + 0.0 turns -0.0 into 0.0


def _quantile_axes(observed: Mapping[str, Array], actions: int) -> tuple[StateAxis, ...]:
    grid = next((grid for grid in GRIDS if math.prod(grid) * actions <= MAX_CELLS), GRIDS[-1])
    return tuple(
        StateAxis(name=name, edges=quantile_edges(observed[name], bins)) for name, bins in zip(STATE, grid, strict=True)
    )


def _mean(values: Array, actions: npt.NDArray[np.int64]) -> float:
    return float(np.take_along_axis(values, actions[..., None], 2).mean())


def _consequences(environment: Environment, outcome: Outcome, chosen: States) -> dict[str, float]:
    latency = np.take_along_axis(outcome.latency_ms, chosen[..., None], 2)
    sizes = np.array([action.bytes for action in environment.actions])
    minutes = chosen.size * STEP_S / 60
    return {
        "latency_ms": float(latency.mean()),
        "latency_p95_ms": float(np.quantile(latency, 0.95)),
        "energy_mj": _mean(outcome.energy_mj, chosen),
        "mb_per_hour": float(sizes[chosen].mean() * 3600 / STEP_S / 1e6),
        "changes_per_minute": float((np.diff(chosen, axis=1) != 0).sum() / minutes),
    }
