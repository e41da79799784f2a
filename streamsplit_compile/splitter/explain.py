"""Explains a table's choice: the reward's terms for every cut, and what would change the choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.policy.reward import Conditions, RewardTerms, terms, whole

UNITS = {"bandwidth_mbps": "Mbit/s", "rtt_ms": "ms", "temperature_c": "°C"}


def with_unit(variable: str, value: float) -> str:
    """A state variable's value for people; shares of 1 have no unit."""
    return f"{value:g} {UNITS[variable]}" if variable in UNITS else f"{value:g}"


@dataclass(frozen=True)
class TurningPoint:
    """The nearest value of one state variable at which another action is chosen."""

    variable: str
    above: bool
    """Whether the variable has to rise."""
    edge: float
    action: str

    def __str__(self) -> str:
        return (
            f"{self.variable} {'from' if self.above else 'below'} {with_unit(self.variable, self.edge)}: {self.action}"
        )


@dataclass(frozen=True)
class Explanation:
    """The explanation of a table's choice in one state."""

    state: dict[str, float]
    row: int
    chosen: str
    q: dict[str, float]
    """Discounted value by action: the mean over all windows in this row's bins."""
    terms: dict[str, RewardTerms]
    """The reward's terms by action, in exactly this state."""
    turns: list[TurningPoint]
    margin: float
    """How much better another action must be before a device changes."""


def explain(table: SplitterTable, state: Mapping[str, float]) -> Explanation:
    """Explain a choice without hysteresis and dwell. Raises UsageError for an incomplete state."""
    names = {*(axis.name for axis in table.state), *Conditions._fields}
    missing, unknown = sorted(names - set(state)), sorted(set(state) - names)
    if missing or unknown:
        what = f"{', '.join(missing)} missing" if missing else f"{', '.join(unknown)} not known"
        raise UsageError(f"state: {what}; this table needs {', '.join(sorted(names))}")
    at = Conditions(**{name: float(state[name]) for name in Conditions._fields})
    last = whole(table.costs)
    row = table.lookup(state)
    return Explanation(
        state={name: float(state[name]) for name in sorted(names)},
        row=row,
        chosen=table.actions[table.policy[row]],
        q=dict(zip(table.actions, table.q[row], strict=True)),
        terms={
            action.name: RewardTerms(*map(float, terms(action, last, table.uplink, table.reward, table.limits, at)))
            for action in table.costs
        },
        turns=_turns(table, state),
        margin=table.hysteresis,
    )


def _turns(table: SplitterTable, state: Mapping[str, float]) -> list[TurningPoint]:
    """For every state variable the nearest edge above and below at which the choice changes."""
    chosen = table.policy[table.lookup(state)]
    turns = []
    for axis in table.state:
        value = state[axis.name]
        above = [edge for edge in axis.edges if edge > value]
        below = [edge for edge in reversed(axis.edges) if edge <= value]
        for edges, rises in ((above, True), (below, False)):
            for edge in edges:
                # A bin begins at its edge; just below it lies the one before.
                moved = {**state, axis.name: edge if rises else edge - 1e-9 * max(abs(edge), 1.0)}
                action = table.policy[table.lookup(moved)]
                if action != chosen:
                    turns.append(TurningPoint(axis.name, rises, edge, table.actions[action]))
                    break
    return turns
