"""Policies played on traces: a table as a device plays it, and its alternatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_edge.formats.records.table import SplitterTable, StateAxis, allowance
from runtime_edge.policy.reward import BYTES_PER_MS
from runtime_edge.policy.splitter import BREAKS_DWELL, URGENT, bounds, move_bins

Array = npt.NDArray[np.float64]
Actions = npt.NDArray[np.int64]


def rows_of(observed: Mapping[str, Array], axes: tuple[StateAxis, ...]) -> Actions:
    """Table row of every window, (trace, window), as `SplitterTable.lookup` finds it."""
    rows = np.zeros(observed[axes[0].name].shape, np.int64)
    for axis in axes:
        rows = rows * (len(axis.edges) + 1) + np.digitize(observed[axis.name], axis.edges)
    return rows


def play(table: SplitterTable, observed: Mapping[str, Array]) -> Actions:
    """A vectorised `Splitter`: the action in every window, (trace, window), without exploration."""
    q = np.asarray(table.q)
    values = [observed[axis.name] for axis in table.state]
    kept = [tuple(np.asarray(side) for side in bounds(axis, table.dead_band)) for axis in table.state]
    # An axis that cannot end a dwell gets an unreachable number of bins.
    enough = np.array([move_bins(a) if a.name in BREAKS_DWELL else 1 << 30 for a in table.state])
    traces, windows = values[0].shape
    every = np.arange(traces)
    bins = np.stack([np.digitize(v[:, 0], axis.edges) for v, axis in zip(values, table.state, strict=True)])
    rows = np.zeros(traces, np.int64)
    current, held, changed_at = np.full(traces, -1), np.zeros(traces, np.int64), bins.copy()
    chosen = np.empty((traces, windows), np.int64)
    bucket, sizes = allowance(table.limits, table.hop_s), np.asarray(table.action_bytes)
    left = np.full(traces, bucket.size)
    for window in range(windows):
        rows[:] = 0
        for place, value, axis, (down, up) in zip(bins, values, table.state, kept, strict=True):
            now = value[:, window]
            outside = ~((down[place] <= now) & (now < up[place]))
            place[outside] = np.digitize(now[outside], axis.edges)
            rows = rows * (len(axis.edges) + 1) + place
        held += 1
        here = q[rows]
        best = here.argmax(1)
        better = here[every, best] - here[every, current]
        urgent = (better > URGENT) & (np.abs(bins - changed_at) >= enough[:, None]).any(0)
        changes = (current < 0) | ((better > table.hysteresis) & ((held >= table.dwell) | urgent))
        current = np.where(changes, best, current)
        held[changes] = 0
        changed_at[:, changes] = bins[:, changes]
        chosen[:, window] = current
        if table.limits.mb_per_hour is not None:
            left = np.minimum(bucket.size, left + bucket.refill)
            dear = sizes[current] > left
            affordable = np.where(sizes[None] <= left[dear, None], here[dear], -np.inf)
            instead = np.where(np.isfinite(affordable).any(1), affordable.argmax(1), sizes.argmin())
            chosen[dear, window] = instead
            left = left - sizes[chosen[:, window]]
    return chosen


def exploration_bytes(table: SplitterTable, chosen: Actions, bandwidth_mbps: Array) -> Array:
    """Mean bytes that exploration adds to every window, (trace, window)."""
    sizes = np.asarray(table.action_bytes, np.float64)
    room = bandwidth_mbps * BYTES_PER_MS * table.reward.t_max_ms
    total, count = np.zeros(chosen.shape), np.zeros(chosen.shape)
    cuts = np.unique(table.cuts, return_inverse=True)[1]
    for action, size in enumerate(sizes):
        fits = (action < chosen) & (cuts[action] != cuts[chosen]) & (size <= room)
        total += fits * size
        count += fits
    instead = np.where(count > 0, total / np.maximum(count, 1) - sizes[chosen], 0.0)
    return np.asarray(table.probe_rate * instead, np.float64)


def taken(values: Array, actions: npt.NDArray[Any]) -> Array:
    """Values (trace, window, action) at the actions (trace, window)."""
    return np.asarray(np.take_along_axis(values, actions[..., None], 2)[..., 0], np.float64)
