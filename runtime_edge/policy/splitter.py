"""Choosing a cut for each window from a splitter table, on the device.

splitter = Splitter(table, [cut.name for cut in manifest.info.cuts])
splitter.choose(uncertainty=0.4, cpu=0.2, bandwidth_mbps=3.0, rtt_ms=80.0).cut
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from runtime_edge.errors import TableError
from runtime_edge.formats.encoder.privacy_info import Payloads
from runtime_edge.formats.records.table import LOCAL, Allowance, SplitterTable, StateAxis, allowance, cut_position
from runtime_edge.policy.online_learner import OnlineLearner
from runtime_edge.policy.reward import BYTES_PER_MS, byte_price

UNCERTAINTY_SMOOTHING = 0.3
"""Weight of the newest uncertainty in the exponential mean used to look up the table (docs/method.md, section 6)."""
BANDWIDTH_SMOOTHING = 0.3
"""Weight of a new sample in the uplink's exponential mean, one every SAMPLE_S (docs/method.md, section 6)."""
SAMPLE_S = 0.1
BREAKS_DWELL = ("bandwidth_mbps", "cpu", "rtt_ms")
"""State variables whose move ends a dwell: those of link and load, not of the sound."""
RTT_JITTER_MS = 5.0
"""How far the smoothed round trip wavers on a steady link (docs/method.md, section 6: samples by 15 ms)."""
URGENT = 0.25
"""The reward (10 ms of latency at the default weights) that keeping a cut must lose for a dwell to end early."""
LOOK_SHARE = 0.25
"""Share of what a faster link would gain that looking for it may cost."""
RETURN_S = 60.0
"""How long an action just left is not taken again while neither link nor load have moved: otherwise an estimate that
wavers about the edge of a bin would make the device switch back and forth."""


def move_bins(axis: StateAxis) -> int:
    """How many bins count as a move rather than a wavering estimate: a sixth of the axis, at least one."""
    return max(1, (len(axis.edges) + 1) // 6)


class Decision(NamedTuple):
    """What to do with one window."""

    cut: str
    """Name of a cut, or `local`."""
    action: int
    """Index into the table's actions."""
    row: int
    explored: bool
    """Whether it is shipped earlier than the policy would, for the server to learn from."""
    width: int = 0
    """Channels of the cut's bottleneck that are shipped; 0 for the plain activation."""
    exit: bool = False
    """Whether the exit at the cut answers first."""


Widths = Mapping[str, Collection[int]]
"""By cut, the widths of its bottleneck."""
Assets = tuple[Widths, Collection[str], Payloads]
Kind = tuple[str, int, bool]
"""An action's cut, or `local`; its width; whether an exit answers first."""


class Splitter:
    """Chooses a cut for each window from a table (docs/method.md, section 6); holds the state that keeps it steady.

    Four things prevent flapping: a bin of link or load is left only well past its edge (`dead_band`); a better action
    must be better by more than `hysteresis`; after a change the next one waits `dwell` windows, unless link or load
    have moved and waiting would cost more than URGENT; and an action left because link or load were in another bin is
    not taken again for RETURN_S, unless they have moved by several bins.

    A window's uncertainty is known only after it has run, so the table is looked up with the exponential mean of the
    known ones, 1 before the first; `uncertainty_smoothing` is the newest one's weight: 1.0 for smoothed values. It
    never chooses, not even to explore, an action earlier than cut `min_cut_index` or one in `forbidden` (the privacy
    floor), or one whose width (`widths`) or exit (cuts in `exits`) the bundle lacks. Raises TableError if the table
    does not fit.
    """

    def __init__(
        self,
        table: SplitterTable,
        cut_names: Sequence[str],
        *,
        widths: Widths = MappingProxyType({}),
        exits: Collection[str] = (),
        forbidden: Payloads = frozenset(),
        min_cut_index: int = 0,
        seed: int = 0,
        uncertainty_smoothing: float = UNCERTAINTY_SMOOTHING,
    ) -> None:
        self._cut_names = tuple(cut_names)
        self._min_cut_index = min_cut_index
        self._random = np.random.default_rng(seed)
        self._uncertainty = 1.0
        self._uncertainty_smoothing = uncertainty_smoothing
        self._assets = (widths, exits, forbidden)
        self._plan = _plan(table, self._cut_names, self._assets, min_cut_index)
        self._learner: OnlineLearner | None = None
        self._action = -1
        self._allowance = self._plan.allowance.size
        self._reset()

    @property
    def table(self) -> SplitterTable:
        """The table in use."""
        return self._plan.table

    @property
    def assets(self) -> Assets:
        """Widths of the bundle's bottlenecks, cuts with an exit, and what may not be shipped."""
        return self._assets

    @property
    def learner(self) -> OnlineLearner | None:
        """What this device has learnt on top of the table, with `--learn`."""
        return self._learner

    @property
    def uncertainty(self) -> float:
        """The smoothed uncertainty, in [0, 1]."""
        return self._uncertainty

    @property
    def state(self) -> dict[str, float]:
        """The state behind the latest choice; empty before the first."""
        return dict(self._state)

    def learn(self, learner: OnlineLearner | None) -> None:
        """Use the values of a learner for this very table instead of the shipped ones; None: the shipped ones."""
        self._learner = learner

    def swap(
        self,
        table: SplitterTable,
        widths: Widths,
        exits: Collection[str] = (),
        forbidden: Payloads = frozenset(),
    ) -> None:
        """Use another table, or bottlenecks and exits of another bundle, from the next window on.

        If they do not fit, raises TableError and keeps the old ones.
        """
        plan = _plan(table, self._cut_names, (widths, exits, forbidden), self._min_cut_index)
        current = self._plan.kinds[self._action] if self._action >= 0 else None
        kept = [action for action in plan.open if plan.kinds[action] == current]
        self._plan, self._assets = plan, (widths, exits, forbidden)
        self._learner, self._action = None, kept[0] if kept else -1
        self._allowance = min(self._allowance, plan.allowance.size)
        self._reset()

    def _reset(self) -> None:
        self._bins = [-1] * len(self._plan.axes)
        self._latest_row = -1
        self._kept_within: list[tuple[str, float, float]] = [("", math.nan, math.nan)]
        """For each state variable: its name, and the values between which its bin is kept."""
        self._state: Mapping[str, float] = {}
        self._changed_at: list[int] = []
        self._left = -1
        """The action before the last change."""
        self._held = 0

    def choose(
        self,
        uncertainty: float | None,
        cpu: float,
        bandwidth_mbps: float,
        rtt_ms: float,
        *,
        connected: bool = True,
        extra: Mapping[str, float] | None = None,
    ) -> Decision:
        """Choose for one window.

        uncertainty: the latest known, normalised to [0, 1]; None or NaN if nothing new is known. cpu: load by other
        work in [0, 1]. connected: while the link is down, the device runs everything itself whatever is chosen, so the
        choice is what to spool: the smallest frame the server can still train on. extra: state variables beyond the
        four. NaN counts as bad, and so does a missing variable.
        """
        if uncertainty is not None and not math.isnan(uncertainty):
            self._uncertainty += self._uncertainty_smoothing * (uncertainty - self._uncertainty)
        if math.isnan(bandwidth_mbps):
            bandwidth_mbps = 0.0
        state = {"uncertainty": self._uncertainty, "cpu": cpu, "bandwidth_mbps": bandwidth_mbps, "rtt_ms": rtt_ms}
        if extra is not None:
            state = {**extra, **state}
        plan, row = self._plan, self._row(state)
        if not connected:
            spooled = self._afforded(row, plan.to_spool, None)[0] if plan.capped else plan.to_spool
            return Decision(plan.names[spooled], spooled, row, False, plan.kinds[spooled][1])
        action, exploration = self._steady(row), None
        if plan.table.probe_rate and self._random.random() < plan.table.probe_rate:
            exploration = self._explore(action, bandwidth_mbps)
        if plan.capped:
            action, exploration = self._afforded(row, action, exploration)
        chosen = action if exploration is None else exploration
        return Decision(plan.names[chosen], chosen, row, exploration is not None, *plan.kinds[chosen][1:])

    def filler_worth(self) -> float:
        """Bytes that a window may cost, at the table's prices, to see whether the link has become faster.

        They cost LOOK_SHARE of what the best action over a faster link would gain; 0 if no faster link would change the
        cut. Small frames do not reveal that the link has recovered.
        """
        plan = self._plan
        if plan.bandwidth is None or self._action < 0 or self._latest_row < 0:
            return 0.0
        axis, gain, row = plan.axes[plan.bandwidth], plan.table.hysteresis, self._latest_row
        for _ in range(self._bins[plan.bandwidth], len(axis.edges)):
            row += axis.stride
            q = self._q(row)
            gain = max(gain, q[self._best(row)] - q[self._action])
        if gain <= plan.table.hysteresis:
            return 0.0
        price = byte_price(plan.table.uplink, plan.table.reward, plan.table.limits, self._state["bandwidth_mbps"])
        return LOOK_SHARE * gain / max(price, 1e-12)

    def _row(self, state: Mapping[str, float]) -> int:
        """The row of a state; each bin is kept until its value is past the edge by the dead band."""
        self._state = state
        for name, down, up in self._kept_within:
            if not down <= state.get(name, math.nan) < up:  # written so that NaN leaves its bin
                return self._new_row(state)
        return self._latest_row

    def _new_row(self, state: Mapping[str, float]) -> int:
        row, kept_within, bins = 0, [], self._bins
        for index, (name, edges, down, up, stride) in enumerate(self._plan.axes):
            value, place = state.get(name, math.nan), bins[index]
            if place < 0 or not down[place] <= value < up[place]:
                bins[index] = place = bisect_right(edges, value)  # NaN goes into the last bin
            row += place * stride
            kept_within.append((name, down[place], up[place]))
        self._latest_row, self._kept_within = row, kept_within
        return row

    def _q(self, row: int) -> Sequence[float]:
        return self._plan.table.q[row] if self._learner is None else self._learner.q(row)

    def _best(self, row: int) -> int:
        """The best action of a row that is above the privacy floor."""
        return self._plan.best[row] if self._learner is None else max(self._plan.open, key=self._q(row).__getitem__)

    def _steady(self, row: int) -> int:
        """The best action, or the current one while it is good enough or has only just begun."""
        plan, current = self._plan, self._action
        self._held += 1
        q = self._q(row)
        best = self._best(row)
        if best == current or (current >= 0 and q[best] - q[current] <= plan.table.hysteresis):
            return current
        moved = self._moved()
        urgent = current < 0 or (q[best] - q[current] > URGENT and moved)
        wavers = best == self._left and not moved and self._elsewhere()
        if self._held < (plan.returns if wavers else plan.table.dwell) and not urgent:
            return current
        self._action, self._left, self._held, self._changed_at = best, current, 0, list(self._bins)
        return best

    def _moved(self) -> bool:
        """Whether link or load have moved since the last change."""
        bins, before = self._bins, self._changed_at
        return not before or any(abs(bins[axis] - before[axis]) >= enough for axis, enough in self._plan.moving)

    def _elsewhere(self) -> bool:
        """Whether link or load are in other bins than at the last change, even adjacent ones."""
        return any(self._bins[axis] != self._changed_at[axis] for axis, _ in self._plan.moving)

    def _afforded(self, row: int, action: int, exploration: int | None) -> tuple[int, int | None]:
        """The given actions, unless the cap on bytes forbids them: then no exploration, or the best affordable one."""
        plan = self._plan
        self._allowance = min(plan.allowance.size, self._allowance + plan.allowance.refill)
        if exploration is not None and plan.bytes[exploration] > self._allowance:
            exploration = None
        if exploration is None and plan.bytes[action] > self._allowance:
            affordable = [other for other in plan.open if plan.bytes[other] <= self._allowance]
            action = max(affordable, key=self._q(row).__getitem__) if affordable else plan.smallest
        self._allowance -= plan.bytes[action if exploration is None else exploration]
        return action, exploration

    def _explore(self, action: int, bandwidth_mbps: float) -> int | None:
        """An earlier cut than `action` whose transfer takes at most `reward.t_max_ms`."""
        plan = self._plan
        room = bandwidth_mbps * BYTES_PER_MS * plan.table.reward.t_max_ms
        earlier = [other for other in plan.open if other < action and plan.names[other] != plan.names[action]]
        fitting = [other for other in earlier if plan.bytes[other] <= room]
        return fitting[self._random.integers(len(fitting))] if fitting else None


class _Axis(NamedTuple):
    """A state variable, ready for lookups: bin i is kept while `down[i] <= value < up[i]`."""

    name: str
    edges: tuple[float, ...]
    down: tuple[float, ...]
    up: tuple[float, ...]
    stride: int


def bounds(axis: StateAxis, dead_band: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The values between which each bin is kept once entered: its edges, each moved outwards by the dead band.

    Only a variable that may end a dwell needs a dead band; for the others the dwell is enough. A round trip jitters by
    RTT_JITTER_MS whatever its length.
    """
    if dead_band == 0 or axis.name not in BREAKS_DWELL:
        widths = [0.0] * len(axis.edges)
    else:
        least = RTT_JITTER_MS if axis.name == "rtt_ms" else 0.0
        widths = [max(least, dead_band * abs(edge)) for edge in axis.edges]
    down = (-math.inf, *(edge - width for edge, width in zip(axis.edges, widths, strict=True)))
    up = (*(edge + width for edge, width in zip(axis.edges, widths, strict=True)), math.inf)
    return down, up


class _Plan(NamedTuple):
    """A table, with everything derived from it once, so that a choice is a few look-ups."""

    table: SplitterTable
    names: tuple[str, ...]
    """Each action's cut, or `local`."""
    kinds: tuple[Kind, ...]
    bytes: tuple[int, ...]
    open: list[int]
    """Actions above the privacy floor whose widths and exits exist."""
    best: list[int]
    """The best of these actions in each row."""
    axes: list[_Axis]
    moving: list[tuple[int, int]]
    """Axes whose move ends a dwell, and how many bins count as a move."""
    bandwidth: int | None
    """Axis of the uplink."""
    to_spool: int
    """The action whose frame to spool while the link is down."""
    smallest: int
    """The action with the fewest bytes."""
    capped: bool
    allowance: Allowance
    returns: int
    """RETURN_S in windows, or the dwell if that is longer."""


def _plan(table: SplitterTable, cut_names: Sequence[str], assets: Assets, min_cut_index: int) -> _Plan:
    table.check_cuts(cut_names)
    widths, exits, forbidden = assets
    names, sizes = table.cuts, table.action_bytes
    kinds = tuple((action.cut, action.width, action.answer == "exit") for action in table.costs)
    if len(set(kinds)) != len(kinds):
        raise TableError(
            "costs: two actions of one cut and width; this version ships those in one encoding: update the device"
        )
    above_floor = [action for action, name in enumerate(names) if cut_position(name, cut_names) >= min_cut_index]
    if not above_floor:
        raise TableError(f"costs: all cuts are earlier than this device's privacy floor, cut {min_cut_index}")
    above_floor = [action for action in above_floor if kinds[action][:2] not in forbidden]
    if not above_floor:
        raise TableError("costs: every action ships more than max_word_recognition allows; train the table again")
    known = [action for action in above_floor if _is_there(kinds[action], widths, exits)]
    if not known:
        raise TableError(
            "costs: every action needs a width or an exit that this bundle does not have; train the table again"
        )
    axes = _axes(table.state, table.dead_band)
    shipping = [action for action in known if names[action] != LOCAL] or known
    teaching = [action for action in shipping if table.costs[action].teaches]
    return _Plan(
        table=table,
        names=names,
        kinds=kinds,
        bytes=sizes,
        open=known,
        best=[max(known, key=q.__getitem__) for q in table.q],
        axes=axes,
        moving=[(index, move_bins(axis)) for index, axis in enumerate(table.state) if axis.name in BREAKS_DWELL],
        bandwidth=next((index for index, axis in enumerate(axes) if axis.name == "bandwidth_mbps"), None),
        to_spool=min(teaching or shipping, key=sizes.__getitem__),
        smallest=min(known, key=sizes.__getitem__),
        capped=table.limits.mb_per_hour is not None,
        allowance=allowance(table.limits, table.hop_s),
        returns=max(table.dwell, math.ceil(RETURN_S / table.hop_s)),
    )


def _is_there(kind: Kind, widths: Widths, exits: Collection[str]) -> bool:
    """Whether the bundle has what an action needs."""
    cut, width, early = kind
    return (not width or width in widths.get(cut, ())) and (not early or cut in exits)


def _axes(state: Sequence[StateAxis], dead_band: float) -> list[_Axis]:
    axes: list[_Axis] = []
    stride = 1
    for axis in reversed(state):
        axes.insert(0, _Axis(axis.name, axis.edges, *bounds(axis, dead_band), stride))
        stride *= len(axis.edges) + 1
    return axes
