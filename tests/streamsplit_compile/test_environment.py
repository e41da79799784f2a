"""Latency, energy, quality and reward of every action, checked against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime_edge.errors import UsageError
from runtime_edge.table import LOCAL, Reward
from streamsplit_compile.environment import (
    ActionCosts,
    Environment,
    environment_for,
    heuristic_rule,
    simulate,
)
from streamsplit_compile.targets import load_target
from streamsplit_compile.traces import Traces

WAVEFORM = ActionCosts("waveform", 0.0, 0.0, 25_000, 10.0, (1.0,), True)
EARLY = ActionCosts("early", 20.0, 80.0, 5_000, 8.0, (0.9, 0.8), True)
EMBEDDING = ActionCosts("embedding", 50.0, 200.0, 250, 0.0, (1.0,), False)
ON_DEVICE = ActionCosts(LOCAL, 50.0, 200.0, 0, 0.0, (1.0,), False)
ENVIRONMENT = Environment((WAVEFORM, EARLY, EMBEDDING, ON_DEVICE), 2.0, 0.5, Reward(rho=0.3))


def one_window(cpu: float, uncertainty: float, mbps: float, rtt_ms: float) -> Traces:
    return Traces(
        uncertainty=np.array([[uncertainty]]),
        cpu=np.array([[cpu]]),
        bandwidth_mbps=np.array([[mbps]]),
        rtt_ms=np.array([[rtt_ms]]),
    )


def test_a_window_by_hand() -> None:
    outcome = simulate(ENVIRONMENT, one_window(cpu=0.5, uncertainty=0.4, mbps=2.0, rtt_ms=60.0))

    # 2 Mbit/s is 250 bytes a millisecond, so transfers take 100, 20, 1 and 0 ms; half the processor is taken.
    assert outcome.latency_ms[0, 0].tolist() == pytest.approx([100 + 70, 40 + 20 + 68, 100 + 1 + 60, 100])
    assert outcome.energy_mj[0, 0].tolist() == pytest.approx([50 + 50, 80 + 10 + 10, 200 + 0.5 + 0.5, 200])
    assert outcome.quality[0, 0].tolist() == [1.0, 0.9, 1.0, 1.0]
    expected = [
        10 * (1.0 + 0.12) - 5 * 170 / 200 - 3 * 100 / 100,
        10 * (0.9 + 0.12) - 5 * 128 / 200 - 3 * 100 / 100,
        10 * 1.0 - 5 * 161 / 200 - 3 * 201 / 100,
        10 * 1.0 - 5 * 100 / 200 - 3 * 200 / 100,
    ]
    assert outcome.reward[0, 0].tolist() == pytest.approx(expected)


def test_quality_depends_on_the_bin_of_uncertainty() -> None:
    quality = [simulate(ENVIRONMENT, one_window(0.0, u, 1.0, 50.0)).quality[0, 0, 1] for u in (0.0, 0.49, 0.5, 1.0)]
    assert quality == [0.9, 0.9, 0.8, 0.8]


def test_a_full_processor_and_a_dead_link_stay_finite() -> None:
    outcome = simulate(ENVIRONMENT, one_window(cpu=1.0, uncertainty=0.0, mbps=0.0, rtt_ms=60.0))
    assert outcome.latency_ms[0, 0, 3] == pytest.approx(500.0)  # slowed tenfold, no more
    assert np.isfinite(outcome.reward).all()
    assert outcome.latency_ms[0, 0].argmin() == 3


def test_the_radio_comes_from_the_target() -> None:
    environment = environment_for([WAVEFORM, ON_DEVICE], load_target("rpi4"), Reward())
    assert (environment.mj_per_kb, environment.transmit_w) == (2.27, 0.133)


def test_the_rule_of_the_paper() -> None:
    blocks = tuple(ActionCosts(f"cut{k}", 0.0, 0.0, 1, 0.0, (1.0,), k < 8) for k in range(9))
    environment = Environment((*blocks, ON_DEVICE), 1.0, 0.0, Reward())
    traces = Traces(
        uncertainty=np.zeros((1, 4)),
        cpu=np.array([[0.0, 1.0, 0.5, 0.2]]),
        bandwidth_mbps=np.array([[20.0, 0.0, 4.0, 2.0]]),
        rtt_ms=np.zeros((1, 4)),
    )
    # 8 blocks: floor(8 * 1) clipped to 7; floor(0) clipped to 1; floor(8 * 0.5); floor(8 * (0.48 + 0.1))
    assert heuristic_rule(environment, traces).tolist() == [[7, 1, 4, 4]]


def test_the_digest_covers_costs_and_not_the_reward() -> None:
    changed = dataclasses.replace(EARLY, bytes=5001)
    assert ENVIRONMENT.digest == dataclasses.replace(ENVIRONMENT, reward=Reward()).digest
    assert ENVIRONMENT.digest != dataclasses.replace(ENVIRONMENT, actions=(WAVEFORM, changed)).digest
    assert ENVIRONMENT.digest != dataclasses.replace(ENVIRONMENT, transmit_w=0.6).digest


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ((), "different names"),
        ((EARLY, EARLY), "different names"),
        ((dataclasses.replace(EARLY, quality=()),), "early: quality"),
        ((dataclasses.replace(ON_DEVICE, bytes=1),), "local ships nothing"),
        ((dataclasses.replace(ON_DEVICE, teaches=True),), "local ships nothing"),
    ],
)
def test_actions_that_make_no_sense(actions: tuple[ActionCosts, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Environment(actions, 1.0, 1.0, Reward())
