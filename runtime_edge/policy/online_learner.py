"""Learning on the device (`--learn`): bounded corrections of the table, kept apart from its shipped values.

Only latency is measured on a device; quality and energy of an action are those the table was trained on. A window's
reward is known when it is finished, its successor's row when the next one is decided; then

    Q(row, action) <- Q + rate * (reward + discount * max Q(next row) - Q),   Q = shipped + correction

and the correction is limited to +-BOUND. `Learnt` is the record that a server reads and merges into the next table.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from runtime_edge.formats.records.learnt import BOUND, Learnt
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.policy.reward import Conditions, exit_latency_ms, terms, whole

STEP_POWER = 0.7
PRIOR_VISITS = 10
"""Weight of the shipped values against the first measurements."""
SMALLEST_RATE = 0.02
"""Lets learning follow a device that changes."""
_OPEN_WINDOWS = 256


@dataclass
class _OpenDecision:
    """A window that is not finished yet."""

    row: int
    action: int
    at: Conditions
    reward: float | None = None
    next_row: int | None = None


class OnlineLearner:
    """Corrections to one table. One thread decides about windows; another may finish them."""

    def __init__(self, table: SplitterTable, device: str, learnt: Learnt | None = None) -> None:
        """`learnt` is where an earlier run left off. Raises TableError if it is for another table."""
        self._table, self._device = table, device
        self._whole = whole(table.costs)
        self._rows: dict[int, list[float]] = {}
        self._visits: dict[tuple[int, int], int] = {}
        self._windows: dict[int, _OpenDecision] = {}
        self._latest: int | None = None
        self._lock = threading.Lock()
        self.updates = 0
        if learnt is not None:
            learnt.check(table, "learnt values")
            for row, action, correction, visits in learnt.cells:
                self._of(row)[action] = table.q[row][action] + correction
                self._visits[row, action] = visits

    def q(self, row: int) -> Sequence[float]:
        """Corrected values of a row."""
        return self._rows.get(row) or self._table.q[row]

    def decided(self, window: int, row: int, action: int, at: Conditions) -> None:
        """Note that a window was given `action` under these conditions; windows come in order."""
        with self._lock:
            before = self._windows.get(self._latest) if self._latest is not None else None
            if before is not None and self._latest is not None:
                before.next_row = row
                self._learn(self._latest, before)
            self._windows[window], self._latest = _OpenDecision(row, action, at), window
            if len(self._windows) > _OPEN_WINDOWS:  # never finished: nothing to learn
                self._windows.pop(next(iter(self._windows)))

    def finished(self, window: int, uncertainty: float, device_ms: float, answer_ms: float | None) -> None:
        """Learn from a finished window: its time on the device and, if the server finished it, until the answer."""
        with self._lock:
            open_window = self._windows.get(window)
            if open_window is None or open_window.reward is not None:
                return
            table, action, at = self._table, self._table.costs[open_window.action], open_window.at
            expected = terms(
                action,
                self._whole,
                table.uplink,
                table.reward,
                table.limits,
                at._replace(uncertainty=uncertainty),
            )
            if action.answer == "exit":
                # Without an answer the exit's stands, from the deadline on.
                final_ms = device_ms + (table.uplink.deadline_ms if answer_ms is None else answer_ms)
                felt_ms = exit_latency_ms(device_ms, final_ms, table.reward)
            elif answer_ms is None:
                on_device = terms(action, self._whole, table.uplink, table.reward, table.limits, at._replace(cpu=0.0))
                felt_ms = device_ms + float(on_device.latency_ms) - action.device_ms
            else:
                felt_ms = device_ms + answer_ms
            late_ms = felt_ms - float(expected.latency_ms)
            open_window.reward = float(expected.total) - table.reward.beta * late_ms / table.reward.t_max_ms
            self._learn(window, open_window)

    def record(self) -> Learnt:
        """What was learnt so far."""
        with self._lock:
            cells = [
                (row, action, round(self._rows[row][action] - self._table.q[row][action], 4), visits)
                for (row, action), visits in sorted(self._visits.items())
            ]
        return Learnt(device=self._device, target=self._table.target, table=self._table.digest, cells=cells)

    def _learn(self, window: int, done: _OpenDecision) -> None:
        if done.reward is None or done.next_row is None:
            return
        del self._windows[window]
        row, shipped = self._of(done.row), self._table.q[done.row][done.action]
        visits = self._visits[done.row, done.action] = self._visits.get((done.row, done.action), 0) + 1
        target = done.reward + self._table.discount * max(self.q(done.next_row))
        rate = max((PRIOR_VISITS + visits) ** -STEP_POWER, SMALLEST_RATE)
        value = row[done.action] + rate * (target - row[done.action])
        row[done.action] = min(max(value, shipped - BOUND), shipped + BOUND)
        self.updates += 1

    def _of(self, row: int) -> list[float]:
        return self._rows.setdefault(row, list(self._table.q[row]))
