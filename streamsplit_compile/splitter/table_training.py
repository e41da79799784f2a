"""Trains a splitter table (docs/method.md, section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from runtime_edge.errors import CheckFailed, UsageError
from runtime_edge.formats.records.actions import ShipThresholds
from runtime_edge.formats.records.table import SplitterTable, StateAxis, StateName, cuts_digest
from runtime_edge.formats.records.table_values import as_stored, q_rows
from streamsplit_compile.splitter.environment import Environment, simulate
from streamsplit_compile.splitter.evaluation import evaluate
from streamsplit_compile.splitter.limits import broken_limits, priced
from streamsplit_compile.splitter.policies import Actions, Array, rows_of
from streamsplit_compile.splitter.qlearning import (
    QLearningConfig,
    fill_unvisited,
    geometric_edges,
    q_learning,
    quantile_edges,
)
from streamsplit_compile.splitter.traces import FAMILIES, HELD_OUT, Traces, family_traces, observe

STATE: tuple[StateName, ...] = ("uncertainty", "cpu", "bandwidth_mbps", "rtt_ms")
GRIDS = ((5, 3, 13, 5), (4, 3, 10, 4), (4, 4, 8, 3), (3, 3, 6, 3), (3, 3, 5, 2), (2, 2, 4, 2))
"""Bins of each state variable; the first grid whose table has at most MAX_CELLS numbers is taken."""
MAX_CELLS = 5600
"""The most numbers in a table. At 2 2/3 characters each they take 15 KiB of the 64 KiB."""
STEADY_S = 1.0
"""How long a cut is kept unless link or load change."""
_MANY_ACTIONS = 8
_STRICTER = (0.94, 0.9, 0.85, 0.75, 0.6)
"""Shares of a cap to aim for, tried in order until the held-out traces keep the cap itself."""


@dataclass(frozen=True)
class TableOptions:
    """How a table is trained and how it behaves."""

    seed: int = 0
    bins: tuple[StateAxis, ...] = ()
    """State variables with their edges, which replace or add to the four usual ones with edges at the traces'
    quantiles; a variable without edges is not used."""
    learning: QLearningConfig = field(default_factory=QLearningConfig)
    hysteresis: float = 0.02
    dead_band: float = 0.1
    exploration: float = 0.02
    ship: ShipThresholds | None = None
    """Thresholds by which devices keep windows that an action would ship; None to ship all."""
    created_by: str = "ssc splitter train"


def default_traces(seed: int, actions: int = 1) -> Traces:
    """The traces that a table is trained on by default: all families, and outages twice.

    A frame lost to an outage costs more than a thousand others gain over the best fixed cut, so a device whose link has
    outages must not do worse with a table that cannot know about them. A table of many actions has few rows, for which
    a quarter of the traces is enough and takes a fifth of the time.
    """
    return family_traces((*FAMILIES, "outages"), 512 if actions <= _MANY_ACTIONS else 128, 480, seed)


def default_held_out(seed: int) -> Traces:
    """Traces of the same families, from seeds that nothing is trained on."""
    return family_traces(tuple(FAMILIES), 32, 480, seed + HELD_OUT)


def train_table(
    environment: Environment,
    *,
    target: str,
    encoder: str,
    cut_names: Sequence[str],
    bundle: str,
    traces: Traces | None = None,
    held_out: Traces | None = None,
    options: TableOptions | None = None,
) -> SplitterTable:
    """Learn a table by Q-learning on traces and measure it on others.

    `cut_names` are all cuts of the bundle whose manifest has the digest `bundle`. The same arguments give the same
    bytes. Raises TableError when the actions do not fit the cuts or the table is too large, CheckFailed when the caps
    cannot be kept.
    """
    options = options if options is not None else TableOptions()
    traces = traces if traces is not None else default_traces(options.seed, len(environment.actions))
    held_out = held_out if held_out is not None else default_held_out(options.seed)
    observed = observe(traces)
    usual = _quantile_axes(observed, len(environment.actions))
    given = {axis.name: axis for axis in options.bins}
    axes = (*(given.pop(axis.name, axis) for axis in usual), *given.values())
    _check_measured(axes, observed)
    rows = rows_of(observed, axes)
    n_rows = math.prod(len(axis.edges) + 1 for axis in axes)
    broken: list[str] = []
    for strictness in _STRICTER:
        charged = priced(environment, traces, rows, n_rows, strictness)
        q = _learn(charged, traces, rows, axes, options)
        table = _table(charged, q, axes, options, target, encoder, cut_names, bundle)
        found = evaluate(table, held_out, charged)
        broken = broken_limits(environment.limits, found.table)
        if not broken:
            table = msgspec.structs.replace(table, metrics=found.metrics())
            table.to_json()  # raises when it is too large for a device
            return table
    raise CheckFailed(f"the caps do not hold on held-out traces: {'; '.join(broken)}; raise them")


def _table(
    environment: Environment,
    q: Array,
    axes: tuple[StateAxis, ...],
    options: TableOptions,
    target: str,
    encoder: str,
    cut_names: Sequence[str],
    bundle: str,
) -> SplitterTable:
    table = SplitterTable(
        target=target,
        encoder=encoder,
        created_by=options.created_by,
        costs=environment.actions,
        uplink=environment.uplink,
        reward=environment.reward,
        limits=environment.limits,
        discount=options.learning.gamma,
        hop_s=environment.hop_s,
        state=axes,
        hysteresis=options.hysteresis,
        dead_band=options.dead_band,
        dwell=math.ceil(STEADY_S / environment.hop_s),
        probe_rate=options.exploration,
        ship=options.ship,
        costs_digest=environment.digest,
        bundle=bundle,
        bundle_cuts=cuts_digest(cut_names),
        metrics={},
        q=q_rows(q),
    )
    table.check_cuts(cut_names)
    return table


def _learn(
    environment: Environment, traces: Traces, rows: Actions, axes: Sequence[StateAxis], options: TableOptions
) -> Array:
    """Q of every row, (state, action), rounded as in a table file."""
    bins = [len(axis.edges) + 1 for axis in axes]
    rewards = simulate(environment, traces).reward
    q, visits = q_learning(rows, rewards, math.prod(bins), options.learning)
    filled = fill_unvisited(q, visits >= options.learning.min_visits, bins)
    return as_stored(filled)


def _quantile_axes(observed: Mapping[str, Array], actions: int) -> tuple[StateAxis, ...]:
    grid = next((grid for grid in GRIDS if math.prod(grid) * actions <= MAX_CELLS), GRIDS[-1])
    return tuple(
        StateAxis(
            name=name,
            edges=(geometric_edges if name == "bandwidth_mbps" else quantile_edges)(observed[name], bins),
        )
        for name, bins in zip(STATE, grid, strict=True)
    )


def _check_measured(axes: Sequence[StateAxis], observed: Mapping[str, Array]) -> None:
    for axis in axes:
        if axis.name not in observed:
            raise UsageError(f"bins of {axis.name}: the traces do not have it, only {', '.join(observed)}")
