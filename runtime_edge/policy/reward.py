"""Latency, energy and reward of an action in one window (docs/method.md, section 6), on numbers and on arrays.

    Lat = device_ms / (1 - min(R, 0.9)), and + bytes / bandwidth + round trip + server_ms at a cut before the last
    E   = device_mj [+ message_mj + mj_per_kb * bytes / 1000 + transmit_w * transfer_ms, if it ships]
    A   = quality(k, u) + rho * u  if the server can learn from the window (shipped at a cut before the last, in time)
    r   = alpha * A - beta * Lat / t_max_ms - eta * E / e_budget_mj

At the last cut the device has the embedding itself: it ships, and waits for nothing. `local` does not even ship. If
no answer arrives within `deadline_ms`, the device runs the remaining blocks itself. Then nothing counts as learnt: over
so slow a link windows queue until most are dropped.

If an exit answers first, A and Lat are `phi` times those of its answer, which waits for nothing, plus `1 - phi`
times those of the server's. If no server answer arrives, nothing else is run, and the exit's answer stands: as the
last one it counts from the deadline on, when nobody waits for another any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from runtime_edge.formats.records.actions import ActionCosts, Uplink
from runtime_edge.formats.records.table import Limits, Reward

BYTES_PER_MS = 125.0
"""Bytes per millisecond at 1 Mbit/s."""
MAX_LOAD = 0.9
"""Under load the prefix slows down tenfold at most."""
MIN_BANDWIDTH_MBPS = 0.01
"""Lower limit that keeps the transfer time of an outage finite."""


class Conditions(NamedTuple):
    """The conditions of one window, or arrays of one shape for many windows."""

    uncertainty: Any
    cpu: Any
    bandwidth_mbps: Any
    rtt_ms: Any


class RewardTerms(NamedTuple):
    """The consequences of an action and the terms of its reward, in the shape of the conditions."""

    latency_ms: Any
    energy_mj: Any
    quality: Any
    """alpha * A(k, u)."""
    learning: Any
    """alpha * rho * u, if the server's answer comes in time."""
    delay: Any
    """-beta * Lat / t_max_ms."""
    energy: Any
    """-eta * E / e_budget_mj."""
    limits: Any
    """Minus what the caps charge for bytes and late windows."""
    first_ms: Any
    """Time until the first answer; if another one follows, `latency_ms` counts it in part."""
    final_ms: Any
    """Time until the last answer."""

    @property
    def total(self) -> Any:
        """The reward."""
        return self.quality + self.learning + self.delay + self.energy + self.limits


def terms(
    action: ActionCosts, rest_of: ActionCosts, uplink: Uplink, reward: Reward, limits: Limits, at: Conditions
) -> RewardTerms:
    """Play one action. `rest_of` is the action that runs the whole encoder."""
    if action.answer == "exit":
        return _exit_terms(action, uplink, reward, limits, at)
    slowdown = 1 / (1 - np.minimum(at.cpu, MAX_LOAD))
    waits = action.teaches  # only a cut before the last teaches, and only there the server's answer is the embedding
    transfer_ms = _transfer_ms(action.bytes, at.bandwidth_mbps)
    answer_ms = waits * (transfer_ms + at.rtt_ms + action.server_ms)
    late = answer_ms > uplink.deadline_ms
    waited_ms = np.where(late, uplink.deadline_ms + slowdown * (rest_of.device_ms - action.device_ms), answer_ms)
    latency_ms = slowdown * action.device_ms + waited_ms
    run_mj = action.device_mj + late * (rest_of.device_mj - action.device_mj)
    energy_mj = _shipped_mj(run_mj, action, uplink, transfer_ms)
    agreed = quality(action.quality, at.uncertainty)
    return _rewarded(action, reward, limits, at, late, (latency_ms, latency_ms), energy_mj, agreed)


def exit_latency_ms(first_ms: Any, final_ms: Any, reward: Reward) -> Any:
    """`Lat` of an exit's answer followed by the server's; of the first alone if that stands."""
    return reward.first_share * first_ms + (1 - reward.first_share) * final_ms


def worth(agreed: Any, latency_ms: Any, energy_mj: Any, reward: Reward) -> tuple[Any, Any, Any]:
    """The terms of agreement, latency and energy, which add up to a reward."""
    return (
        reward.alpha * agreed,
        -reward.beta * latency_ms / reward.t_max_ms,
        -reward.eta * energy_mj / reward.e_budget_mj,
    )


def _exit_terms(action: ActionCosts, uplink: Uplink, reward: Reward, limits: Limits, at: Conditions) -> RewardTerms:
    """Play an action whose exit answers first."""
    assert action.exit_quality is not msgspec.UNSET
    first_ms = action.device_ms / (1 - np.minimum(at.cpu, MAX_LOAD))
    transfer_ms = _transfer_ms(action.bytes, at.bandwidth_mbps)
    answer_ms = transfer_ms + at.rtt_ms + action.server_ms
    late = answer_ms > uplink.deadline_ms
    first = quality(action.exit_quality, at.uncertainty)
    final = np.where(late, first, quality(action.quality, at.uncertainty))
    answers_ms = first_ms, first_ms + np.minimum(answer_ms, uplink.deadline_ms)
    energy_mj = _shipped_mj(action.device_mj, action, uplink, transfer_ms)
    agreed = reward.first_share * first + (1 - reward.first_share) * final
    return _rewarded(action, reward, limits, at, late, answers_ms, energy_mj, agreed)


def byte_price(uplink: Uplink, reward: Reward, limits: Limits, bandwidth_mbps: float) -> float:
    """The reward that a byte costs when nobody waits for it: the energy of the radio, and the cap on bytes."""
    mj = uplink.mj_per_kb / 1000 + uplink.transmit_w * float(_transfer_ms(1, bandwidth_mbps))
    return reward.eta * mj / reward.e_budget_mj + limits.price_per_kb / 1000


def _transfer_ms(size: int, bandwidth_mbps: Any) -> Any:
    return size / (np.maximum(bandwidth_mbps, MIN_BANDWIDTH_MBPS) * BYTES_PER_MS)


def _shipped_mj(run_mj: Any, action: ActionCosts, uplink: Uplink, transfer_ms: Any) -> Any:
    """Energy of what was run, and of the radio."""
    return (
        run_mj
        + uplink.message_mj * (action.bytes > 0)
        + uplink.mj_per_kb * action.bytes / 1000
        + uplink.transmit_w * np.minimum(transfer_ms, uplink.deadline_ms)
    )


def _rewarded(
    action: ActionCosts,
    reward: Reward,
    limits: Limits,
    at: Conditions,
    late: Any,
    answers_ms: tuple[Any, Any],
    energy_mj: Any,
    agreed: Any,
) -> RewardTerms:
    first_ms, final_ms = answers_ms
    latency_ms = final_ms if first_ms is final_ms else exit_latency_ms(first_ms, final_ms, reward)
    agreement, delay, energy = worth(agreed, latency_ms, energy_mj, reward)
    too_late = 0.0 if limits.latency_p95_ms is None else latency_ms > limits.latency_p95_ms
    return RewardTerms(
        latency_ms,
        energy_mj,
        agreement,
        reward.alpha * reward.rho * action.teaches * np.logical_not(late) * at.uncertainty,
        delay,
        energy,
        0.0 - limits.price_per_kb * action.bytes / 1000 - limits.price_late * too_late,
        first_ms,
        final_ms,
    )


def quality(measured: Sequence[float], uncertainty: Any) -> Any:
    """A(k, u), as measured in equally wide bins of uncertainty."""
    values = np.asarray(measured, np.float64)
    return values[np.minimum((np.asarray(uncertainty) * len(values)).astype(np.int64), len(values) - 1)]


def whole(costs: Sequence[ActionCosts]) -> ActionCosts:
    """The action that runs most of the encoder on the device: the last cut, or `local`.

    Coding a bottleneck's latent, or an exit, is no part of the encoder, but may take longer than all of it.
    """
    plain = [action for action in costs if not action.width and action.answer != "exit"]
    return max(plain or costs, key=lambda action: action.device_ms)
