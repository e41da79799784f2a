"""The splitter's environment: the outcome of every action of a bundle on a target, in every window of some traces.

The arithmetic for one action in one window is in `runtime_edge.policy.reward`. Arrays have shape
(trace, window, action), float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.actions import ActionCosts, Uplink, costs_digest
from runtime_edge.formats.records.table import LOCAL, MAX_ACTIONS, Limits, Reward, SplitterTable
from runtime_edge.policy.reward import Conditions, terms, whole
from streamsplit_compile.cost.radios import Radio
from streamsplit_compile.splitter.traces import Traces

Array = npt.NDArray[np.float64]
MOST_AGREEMENT_LOST = 0.005
"""How much less a bottleneck's width may agree with the encoder than the plain activation at its cut."""
RULE_FULL_MBPS = 8.0
"""Bandwidth that counts as 1 in the heuristic rule: the top of the range in docs/method.md, section 6."""


@dataclass(frozen=True)
class Environment:
    """Actions in cut order with `local` last, the costs of the uplink, the reward and the caps."""

    actions: tuple[ActionCosts, ...]
    uplink: Uplink
    reward: Reward
    limits: Limits = field(default_factory=Limits)
    hop_s: float = 0.5
    """Seconds from one window to the next."""

    def __post_init__(self) -> None:
        names = [action.name for action in self.actions]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"actions must have different names, got {names}")
        for action in self.actions:
            if not action.quality:
                raise UsageError(f"action {action.name}: quality needs at least one number")
            if action.name == LOCAL and (action.bytes or action.teaches):
                raise UsageError("action local ships nothing: its bytes are 0 and it teaches nothing")

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over the costs, without the reward."""
        return costs_digest(self.actions, self.uplink)

    @property
    def bytes(self) -> Array:
        """Bytes shipped by each action, shape (action,)."""
        return np.array([action.bytes for action in self.actions], np.float64)


@dataclass(frozen=True)
class ActionOutcomes:
    """The outcome of every action in every window, each of shape (trace, window, action)."""

    latency_ms: Array
    """If there are two answers, their mean, weighted as in the reward."""
    energy_mj: Array
    quality: Array
    """Agreement, without the learning value."""
    reward: Array
    """The reward, less the prices of the caps."""
    first_ms: Array
    """Time until the first answer."""
    final_ms: Array
    """Time until the last answer."""


def environment_for(
    costs: Sequence[ActionCosts],
    radio: Radio,
    reward: Reward,
    limits: Limits | None = None,
    hop_s: float = 0.5,
    agreement_lost: float = MOST_AGREEMENT_LOST,
) -> Environment:
    """The environment of these actions over this radio, without those the privacy floor or the memory cap forbid.

    A bottleneck's width is kept only if it is `close_enough` to the encoder and no other action beats it. If there are
    more actions than a table may have, only useful ones are kept, or as many of them as it may have, evenly spread.

    Raises UsageError for actions that make no sense, or when a cap leaves none.
    """
    limits = limits if limits is not None else Limits()
    names = [action.name for action in costs]
    if limits.min_cut is not None and limits.min_cut not in names:
        raise UsageError(f"privacy floor {limits.min_cut!r}: the cuts are {', '.join(names)}")
    floor = 0 if limits.min_cut is None else names.index(limits.min_cut)
    room = np.inf if limits.memory_mb is None else limits.memory_mb
    allowed = tuple(action for action in costs[floor:] if action.memory_mb <= room)
    if not allowed:
        least = min(action.memory_mb for action in costs[floor:])
        raise UsageError(f"memory cap {room:g} MB: no cut above the privacy floor needs less than {least:.1f} MB")
    near = close_enough(allowed, agreement_lost)
    front = tuple(one for one in near if not (one.width and any(_beats(other, one) for other in near)))
    return Environment(_few(front), radio.uplink(hop_s), reward, limits, hop_s)


def close_enough(actions: Sequence[ActionCosts], agreement_lost: float = MOST_AGREEMENT_LOST) -> list[ActionCosts]:
    """The actions without those whose last answers suffer from their bottleneck.

    Left out are widths that agree with the encoder by more than `agreement_lost` less than the plain activation at
    their cut does, on average over uncertainties. The reward alone would allow them: it trades a hundredth of agreement
    for 4 ms, but labels suffer more than the cosine shows (docs/bottlenecks.md).
    """
    plain = {one.cut: np.mean(one.quality) for one in actions if not one.width}
    return [
        one
        for one in actions
        if not one.width or np.mean(one.quality) >= plain.get(one.cut, -np.inf) - agreement_lost - 1e-9
    ]


def _few(actions: tuple[ActionCosts, ...]) -> tuple[ActionCosts, ...]:
    """At most MAX_ACTIONS of the actions, always including the first and the last."""
    if len(actions) <= MAX_ACTIONS:
        return actions
    ends = (actions[0], actions[-1])
    useful = [one for one in actions if one in ends or not any(_beats(other, one) for other in actions)]
    chosen = np.linspace(0, len(useful) - 1, min(MAX_ACTIONS, len(useful))).round().astype(int)
    return tuple(useful[index] for index in chosen)


def _beats(one: ActionCosts, other: ActionCosts) -> bool:
    """Whether `one` teaches the server as much as `other` and is no worse in anything and better in something."""
    if (one.answer == "exit") != (other.answer == "exit"):
        return False  # an earlier answer, or a better one: which counts for more depends on the link
    costs, others = (
        (a.device_ms, a.bytes, -min(a.quality), -min(a.exit_quality or a.quality), not a.teaches) for a in (one, other)
    )
    return costs != others and all(a <= b for a, b in zip(costs, others, strict=True))


def environment_of(table: SplitterTable) -> Environment:
    """The environment a table was trained on."""
    return Environment(table.costs, table.uplink, table.reward, table.limits, table.hop_s)


def with_local(environment: Environment) -> Environment:
    """The same environment with the action `local`: everything on the device, nothing shipped."""
    if environment.actions[-1].name == LOCAL:
        return environment
    last = whole(environment.actions)
    local = msgspec.structs.replace(
        last, name=LOCAL, cut=LOCAL, encoding=None, answer="device", bytes=0, server_ms=0.0, teaches=False
    )
    return Environment(
        (*environment.actions, local), environment.uplink, environment.reward, environment.limits, environment.hop_s
    )


def simulate(environment: Environment, traces: Traces) -> ActionOutcomes:
    """Play every action in every window."""
    at = Conditions(traces.uncertainty, traces.cpu, traces.bandwidth_mbps, traces.rtt_ms)
    last = whole(environment.actions)
    played = [
        terms(action, last, environment.uplink, environment.reward, environment.limits, at)
        for action in environment.actions
    ]
    alpha = environment.reward.alpha or 1.0
    return ActionOutcomes(
        np.stack([item.latency_ms for item in played], axis=-1),
        np.stack([item.energy_mj for item in played], axis=-1),
        np.stack([item.quality for item in played], axis=-1) / alpha,
        np.stack([item.total for item in played], axis=-1),
        np.stack([item.first_ms for item in played], axis=-1),
        np.stack([item.final_ms for item in played], axis=-1),
    )


def heuristic_rule(environment: Environment, cpu: Array, bandwidth_mbps: Array) -> npt.NDArray[np.int64]:
    """The baseline `k = clip(floor(L (0.6 (1 - R) + 0.4 B_norm)), 1, L - 1)` as actions, shaped as its arguments.

    L is the number of blocks; B_norm is the bandwidth over 8 Mbit/s, at most 1. The rule ignores bottlenecks.
    """
    plain = np.array([index for index, action in enumerate(environment.actions) if action.name == action.cut != LOCAL])
    blocks = len(plain) - 1
    share = 0.6 * (1 - cpu) + 0.4 * np.minimum(bandwidth_mbps / RULE_FULL_MBPS, 1.0)
    return np.asarray(
        plain[np.clip(np.floor(blocks * share), min(1, blocks), max(blocks - 1, 0)).astype(int)], np.int64
    )
