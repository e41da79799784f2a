"""The splitter's environment: what every action costs and is worth in every window (METHOD section 6).

    Lat = device_ms / (1 - min(R, 0.9)) + bytes / bandwidth + round trip + server_ms
    E   = device_mj + mj_per_kb * bytes / 1000 + transmit_w * transfer_ms
    A   = quality(k, u) + rho * u  if the server can learn from the window (shipped at a cut before the last)
    r   = alpha * A - beta * Lat / t_max_ms - eta * E / e_budget_mj

`local` ships nothing and waits for nothing. Arrays have shape (trace, window, action), float64.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import UsageError
from runtime_edge.splitter import BYTES_PER_MS
from runtime_edge.table import LOCAL, Reward
from streamsplit_compile.targets import Target
from streamsplit_compile.traces import Traces

Array = npt.NDArray[np.float64]

MAX_LOAD = 0.9
"""Under load the prefix slows down tenfold at most."""
MIN_BANDWIDTH_MBPS = 0.01
"""Keeps the latency of an outage finite."""


@dataclass(frozen=True)
class ActionCosts:
    """One action: a cut, or `local`. Costs of one window on an idle device."""

    name: str
    device_ms: float
    device_mj: float
    bytes: int
    server_ms: float
    quality: tuple[float, ...]
    """Agreement with the float32 encoder, for equally wide bins of uncertainty over [0, 1] (one or more)."""
    teaches: bool
    """Whether the server can train on what is shipped: a cut before the last."""


@dataclass(frozen=True)
class Environment:
    """Actions in cut order, `local` last, with the uplink's energy and the reward."""

    actions: tuple[ActionCosts, ...]
    mj_per_kb: float
    transmit_w: float
    reward: Reward

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
        """`sha256:<hex>` over the costs, not the reward."""
        costs = dataclasses.asdict(self)
        del costs["reward"]
        return "sha256:" + hashlib.sha256(json.dumps(costs, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """Every action's consequences in every window, each of shape (trace, window, action)."""

    latency_ms: Array
    energy_mj: Array
    quality: Array
    """Agreement, without the learning value."""
    reward: Array


def environment_for(costs: Sequence[ActionCosts], target: Target, reward: Reward) -> Environment:
    """The environment of these actions on this target. Raises UsageError for actions that make no sense."""
    radio = target.radio
    return Environment(tuple(costs), radio.mj_per_kb.value, radio.transmit_w.value, reward)


def simulate(environment: Environment, traces: Traces) -> Outcome:
    """Play every action in every window."""
    actions, reward = environment.actions, environment.reward
    cpu, uncertainty = traces.cpu[..., None], traces.uncertainty[..., None]
    transfer_ms = _column(actions, "bytes") / (
        np.maximum(traces.bandwidth_mbps, MIN_BANDWIDTH_MBPS)[..., None] * BYTES_PER_MS
    )
    ships = np.array([action.name != LOCAL for action in actions])
    round_trip_ms = ships * traces.rtt_ms[..., None] + _column(actions, "server_ms")
    latency_ms = _column(actions, "device_ms") / (1 - np.minimum(cpu, MAX_LOAD)) + transfer_ms + round_trip_ms
    energy_mj = (
        _column(actions, "device_mj")
        + environment.mj_per_kb * _column(actions, "bytes") / 1000
        + environment.transmit_w * transfer_ms
    )
    quality = np.stack([_quality(action, traces.uncertainty) for action in actions], axis=-1)
    value = quality + reward.rho * uncertainty * _column(actions, "teaches")
    total = (
        reward.alpha * value - reward.beta * latency_ms / reward.t_max_ms - reward.eta * energy_mj / reward.e_budget_mj
    )
    return Outcome(latency_ms, energy_mj, quality, total)


def heuristic_rule(environment: Environment, traces: Traces) -> npt.NDArray[np.int64]:
    """The baseline `k = clip(floor(L (0.6 (1 - R) + 0.4 B_norm)), 1, L - 1)` as actions, (trace, window).

    L is the number of blocks; B_norm is the bandwidth over 8 Mbit/s, at most 1.
    """
    blocks = sum(action.name != LOCAL for action in environment.actions) - 1
    share = 0.6 * (1 - traces.cpu) + 0.4 * np.minimum(traces.bandwidth_mbps / 8.0, 1.0)
    return np.clip(np.floor(blocks * share), min(1, blocks), max(blocks - 1, 0)).astype(np.int64)


def _column(actions: tuple[ActionCosts, ...], field: str) -> Array:
    return np.array([getattr(action, field) for action in actions], np.float64)


def _quality(action: ActionCosts, uncertainty: Array) -> Array:
    values = np.asarray(action.quality, np.float64)
    bins = np.minimum((uncertainty * len(values)).astype(np.int64), len(values) - 1)
    return np.asarray(values[bins], np.float64)
