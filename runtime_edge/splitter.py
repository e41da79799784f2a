"""Choosing a cut for each window from a splitter table, on the device.

splitter = Splitter(table, [cut.name for cut in manifest.info.cuts])
splitter.choose(uncertainty=0.4, cpu=0.2, bandwidth_mbps=3.0, rtt_ms=80.0).cut
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from runtime_edge.errors import TableError
from runtime_edge.table import LOCAL, SplitterTable, cut_position

UNCERTAINTY_SMOOTHING = 0.3
"""Weight of the newest uncertainty in the exponential mean the table is looked up with (METHOD section 6)."""
BYTES_PER_MS = 125.0
"""At 1 Mbit/s."""


class Decision(NamedTuple):
    """What to do with one window."""

    cut: str
    """Name of a cut, or `local`."""
    action: int
    """Index into the table's actions; -1 when no action was allowed and `cut` is `local` for that reason."""
    row: int
    probe: bool
    """Shipped earlier than the policy would, for the server to learn from."""


class Splitter:
    """Chooses a cut for each window from a table (METHOD section 6); holds the state that makes it steady.

    The device knows a window's uncertainty only after it, so the table is looked up with the exponential
    mean of the known ones; before the first it is 1. An action earlier than cut `min_cut_index` (the privacy
    floor) is never chosen, by policy or by probe. Raises TableError when the table does not fit.
    """

    def __init__(
        self, table: SplitterTable, cut_names: Sequence[str], *, min_cut_index: int = 0, seed: int = 0
    ) -> None:
        self._cut_names = tuple(cut_names)
        self._min_cut_index = min_cut_index
        self._random = np.random.default_rng(seed)
        self._uncertainty = 1.0
        self._current: str | None = None
        self._install(table)

    @property
    def table(self) -> SplitterTable:
        """The table in use."""
        return self._table

    @property
    def uncertainty(self) -> float:
        """The smoothed uncertainty, in [0, 1]."""
        return self._uncertainty

    def swap(self, table: SplitterTable) -> None:
        """Use another table from the next window on. If it does not fit, TableError and the old one stays."""
        self._install(table)

    def choose(
        self,
        uncertainty: float | None,
        cpu: float,
        bandwidth_mbps: float,
        rtt_ms: float,
        *,
        allowed: Sequence[bool] | None = None,
        extra: Mapping[str, float] | None = None,
    ) -> Decision:
        """Choose for one window.

        uncertainty: the latest known, normalised to [0, 1]; None or NaN when nothing new is known. cpu: load
        of other work in [0, 1]. allowed: for each action of the table whether it may be chosen now (link
        down: only those that ship nothing). extra: state variables beyond the four. NaN counts as bad.
        """
        if uncertainty is not None and not math.isnan(uncertainty):
            self._uncertainty += UNCERTAINTY_SMOOTHING * (uncertainty - self._uncertainty)
        if math.isnan(bandwidth_mbps):
            bandwidth_mbps = 0.0
        state = {
            "cpu": cpu,
            "bandwidth_mbps": bandwidth_mbps,
            "rtt_ms": rtt_ms,
            "uncertainty": self._uncertainty,
        }
        row = self._table.lookup(state if extra is None else {**extra, **state})
        actions = self._open if allowed is None else [action for action in self._open if allowed[action]]
        if not actions:
            return Decision(LOCAL, -1, row, False)
        action = self._steady(self._table.q[row], actions)
        probe = self._probe(action, actions, bandwidth_mbps)
        if probe is not None:
            return Decision(self._table.actions[probe], probe, row, True)
        return Decision(self._table.actions[action], action, row, False)

    def _steady(self, q: tuple[float, ...], actions: list[int]) -> int:
        """The best action, or the current one while it is within the hysteresis margin of the best."""
        best = max(actions, key=q.__getitem__)
        if self._current is not None and self._current in self._table.actions:
            current = self._table.actions.index(self._current)
            if current in actions and q[best] - q[current] <= self._table.hysteresis:
                return current
        self._current = self._table.actions[best]
        return best

    def _probe(self, action: int, actions: list[int], bandwidth_mbps: float) -> int | None:
        """Now and then an earlier cut than `action` whose transfer takes at most `reward.t_max_ms`."""
        if self._table.probe_rate == 0 or self._random.random() >= self._table.probe_rate:
            return None
        room = bandwidth_mbps * BYTES_PER_MS * self._table.reward.t_max_ms
        fitting = [other for other in actions if other < action and self._table.action_bytes[other] <= room]
        return fitting[self._random.integers(len(fitting))] if fitting else None

    def _install(self, table: SplitterTable) -> None:
        table.check_cuts(self._cut_names)
        positions = [cut_position(action, self._cut_names) for action in table.actions]
        above_floor = [action for action, position in enumerate(positions) if position >= self._min_cut_index]
        if not above_floor:
            raise TableError(f"actions: all are earlier than this device's privacy floor, cut {self._min_cut_index}")
        self._table, self._open = table, above_floor
