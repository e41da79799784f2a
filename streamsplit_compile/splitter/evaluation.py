"""Evaluates a table on traces and compares it with fixed cuts, the heuristic rule, and the exact optimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime_edge.formats.records.table import LOCAL, SplitterTable
from streamsplit_compile.splitter.environment import (
    ActionOutcomes,
    Environment,
    environment_of,
    heuristic_rule,
    simulate,
    with_local,
)
from streamsplit_compile.splitter.policies import Actions, Array, exploration_bytes, play, rows_of, taken
from streamsplit_compile.splitter.qlearning import estimate_model, value_iteration
from streamsplit_compile.splitter.traces import Traces, observe

LATE_SHARE = 0.05
"""Share of windows that may exceed a cap on the 95th percentile."""


@dataclass(frozen=True)
class Consequences:
    """A policy's results on the windows of some traces, on average."""

    reward: float
    agreement: float
    latency_ms: float
    latency_p95_ms: float
    energy_mj: float
    mb_per_hour: float
    changes_per_minute: float


@dataclass(frozen=True)
class Evaluation:
    """The results of a table on traces, and of the policies that it is compared with."""

    table: Consequences
    """Played with the table's hysteresis; only the bytes include exploration."""
    fixed: dict[str, Consequences]
    """Policies that always take the same action, by its name."""
    rule: Consequences
    """The heuristic rule."""
    optimum: Consequences
    """The best policy on the same bins, by value iteration on these very traces."""
    device_only: Consequences
    """Everything on the device, nothing shipped, so the server learns nothing, whatever the reward says."""
    alpha: float

    @property
    def best_fixed(self) -> str:
        """The name of the fixed action with the highest reward."""
        return max(self.fixed, key=lambda name: self.fixed[name].reward)

    @property
    def regret(self) -> float:
        """(optimum - reward) / (optimum - best fixed): 0 is optimal, 1 no better than the best fixed action.

        If almost nothing can be gained over the best fixed action, the loss is measured against 1 % of the value of
        full agreement (alpha).
        """
        room = self.optimum.reward - self.fixed[self.best_fixed].reward
        return (self.optimum.reward - self.table.reward) / max(room, 0.01 * self.alpha, 1e-9)

    def metrics(self) -> dict[str, float]:
        """The numbers stored in a table file, rounded."""
        values = {
            **vars(self.table),
            "best_fixed": self.fixed[self.best_fixed].reward,
            "rule": self.rule.reward,
            "optimum": self.optimum.reward,
            "regret": self.regret,
        }
        return {name: round(value, 4) for name, value in values.items()}


def evaluate(table: SplitterTable, traces: Traces, environment: Environment | None = None) -> Evaluation:
    """Play a table and the policies it is compared with, in its own environment or in another one with its actions."""
    environment = environment if environment is not None else environment_of(table)
    observed = observe(traces)
    outcome = simulate(environment, traces)
    rows, chosen = rows_of(observed, table.state), play(table, observed)
    transition, mean_reward, _ = estimate_model(rows, outcome.reward, len(table.q))
    best = value_iteration(transition, mean_reward, table.discount).argmax(1)[rows]
    extended = with_local(environment)
    at_home = simulate(extended, traces)
    return Evaluation(
        table=consequences(environment, outcome, chosen, exploration_bytes(table, chosen, observed["bandwidth_mbps"])),
        fixed={
            action.name: consequences(environment, outcome, np.full(rows.shape, index))
            for index, action in enumerate(environment.actions)
        },
        rule=consequences(
            environment, outcome, heuristic_rule(environment, observed["cpu"], observed["bandwidth_mbps"])
        ),
        optimum=consequences(environment, outcome, best),
        device_only=consequences(
            extended, at_home, np.full(rows.shape, [a.name for a in extended.actions].index(LOCAL))
        ),
        alpha=environment.reward.alpha,
    )


def consequences(
    environment: Environment, outcome: ActionOutcomes, chosen: Actions, extra_bytes: Array | float = 0.0
) -> Consequences:
    """The results of taking the actions `chosen` (trace, window)."""
    latency = taken(outcome.latency_ms, chosen)
    minutes = chosen.size * environment.hop_s / 60
    return Consequences(
        reward=float(taken(outcome.reward, chosen).mean()),
        agreement=float(taken(outcome.quality, chosen).mean()),
        latency_ms=float(latency.mean()),
        latency_p95_ms=float(np.quantile(latency, 1 - LATE_SHARE)),
        energy_mj=float(taken(outcome.energy_mj, chosen).mean()),
        mb_per_hour=float((environment.bytes[chosen] + extra_bytes).mean() * 3600 / environment.hop_s / 1e6),
        changes_per_minute=float((np.diff(chosen, axis=1) != 0).sum() / minutes),
    )
