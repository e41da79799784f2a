"""Latency, energy, quality and reward of every action, checked against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from priced_actions import action

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.actions import ActionCosts, LinkRadio, Uplink
from runtime_edge.formats.records.table import LOCAL, MAX_ACTIONS, Limits, Reward
from runtime_edge.policy.reward import Conditions, terms
from streamsplit_compile.cost.radios import load_radio
from streamsplit_compile.splitter.environment import (
    Environment,
    environment_for,
    heuristic_rule,
    simulate,
    with_local,
)
from streamsplit_compile.splitter.traces import Traces

WAVEFORM = action("waveform", 0.0, 0.0, 25_000, 10.0, (1.0,), True)
EARLY = action("early", 20.0, 80.0, 5_000, 8.0, (0.9, 0.8), True)
EMBEDDING = action("embedding", 50.0, 200.0, 250, 0.0, (1.0,), False)
ON_DEVICE = action(LOCAL, 50.0, 200.0, 0, 0.0, (1.0,), False)
UPLINK = Uplink(mj_per_kb=2.0, transmit_w=0.5)
ENVIRONMENT = Environment((WAVEFORM, EARLY, EMBEDDING, ON_DEVICE), UPLINK, Reward(rho=0.3))


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
    # Behind the last cut the embedding is there before it is shipped.
    assert outcome.latency_ms[0, 0].tolist() == pytest.approx([100 + 70, 40 + 20 + 68, 100, 100])
    assert outcome.energy_mj[0, 0].tolist() == pytest.approx([50 + 50, 80 + 10 + 10, 200 + 0.5 + 0.5, 200])
    assert outcome.quality[0, 0].tolist() == [1.0, 0.9, 1.0, 1.0]
    expected = [
        10 * (1.0 + 0.12) - 5 * 170 / 200 - 3 * 100 / 100,
        10 * (0.9 + 0.12) - 5 * 128 / 200 - 3 * 100 / 100,
        10 * 1.0 - 5 * 100 / 200 - 3 * 201 / 100,
        10 * 1.0 - 5 * 100 / 200 - 3 * 200 / 100,
    ]
    assert outcome.reward[0, 0].tolist() == pytest.approx(expected)


def test_a_window_whose_exit_answers_first_by_hand() -> None:
    early = msgspec.structs.replace(EARLY, name="early+exit", answer="exit", device_ms=22.0, exit_quality=(0.7, 0.6))
    environment = Environment((EARLY, early, EMBEDDING), UPLINK, Reward(rho=0.3))
    outcome = simulate(environment, one_window(cpu=0.5, uncertainty=0.4, mbps=2.0, rtt_ms=60.0))
    assert outcome.latency_ms[0, 0, 1] == pytest.approx((44 + (44 + 20 + 68)) / 2)
    assert outcome.first_ms[0, 0].tolist() == pytest.approx([40 + 20 + 68, 44, 100])
    assert outcome.final_ms[0, 0].tolist() == pytest.approx([40 + 20 + 68, 44 + 20 + 68, 100])
    assert outcome.energy_mj[0, 0, 1] == pytest.approx(80 + 10 + 10)
    assert outcome.quality[0, 0, 1] == pytest.approx((0.7 + 0.9) / 2)
    assert outcome.reward[0, 0, 1] == pytest.approx(10 * (0.8 + 0.12) - 5 * 88 / 200 - 3)

    # Without an answer in time the exit's stands, from the deadline on, and the device runs nothing else.
    dead = simulate(environment, one_window(cpu=0.0, uncertainty=0.9, mbps=0.0, rtt_ms=60.0))
    assert dead.latency_ms[0, 0, 1] == pytest.approx((22 + 22 + UPLINK.deadline_ms) / 2)
    assert dead.quality[0, 0, 1] == pytest.approx(0.6)
    assert dead.energy_mj[0, 0, 1] < dead.energy_mj[0, 0, 0]

    first = Environment((early,), UPLINK, Reward(rho=0.3, phi=1.0))
    assert simulate(first, one_window(0.5, 0.4, 2.0, 60.0)).latency_ms[0, 0, 0] == pytest.approx(44)


def test_quality_depends_on_the_bin_of_uncertainty() -> None:
    quality = [simulate(ENVIRONMENT, one_window(0.0, u, 1.0, 50.0)).quality[0, 0, 1] for u in (0.0, 0.49, 0.5, 1.0)]
    assert quality == [0.9, 0.9, 0.8, 0.8]


def test_a_full_processor_slows_the_prefix_tenfold_and_no_more() -> None:
    outcome = simulate(ENVIRONMENT, one_window(cpu=1.0, uncertainty=0.0, mbps=2.0, rtt_ms=60.0))
    assert outcome.latency_ms[0, 0, 3] == pytest.approx(500.0)


def test_on_a_dead_link_the_device_waits_for_the_deadline_and_runs_the_rest_itself() -> None:
    outcome = simulate(ENVIRONMENT, one_window(cpu=0.5, uncertainty=0.0, mbps=0.0, rtt_ms=60.0))
    # Twice as slow under load: 20 ms become 40, the remaining 30 become 60. At 0.01 Mbit/s 250 bytes take 200 ms.
    assert outcome.latency_ms[0, 0].tolist() == pytest.approx([1000 + 100, 40 + 1000 + 60, 100, 100])
    # The rest of the encoder is paid for, and one second of transmitting.
    assert outcome.energy_mj[0, 0].tolist() == pytest.approx([200 + 50 + 500, 200 + 10 + 500, 200 + 0.5 + 100, 200])


def test_the_radio_comes_from_the_link() -> None:
    environment = environment_for([WAVEFORM, ON_DEVICE], load_radio("lte"), Reward(), hop_s=0.5)
    assert environment.uplink == load_radio("lte").uplink(0.5)
    assert environment.uplink.radio.link == "lte"


def test_a_window_that_ships_pays_for_its_message_and_one_that_does_not_pays_nothing() -> None:
    radio = LinkRadio(link="lte", message_mj=500.0)
    at = Conditions(uncertainty=0.4, cpu=0.0, bandwidth_mbps=2.0, rtt_ms=60.0)
    for which, costs in ((EARLY, 500.0), (EMBEDDING, 500.0), (ON_DEVICE, 0.0)):
        with_radio, without = (
            terms(which, EMBEDDING, uplink, Reward(), Limits(), at)
            for uplink in (msgspec.structs.replace(UPLINK, radio=radio), UPLINK)
        )
        assert with_radio.energy_mj - without.energy_mj == pytest.approx(costs)


def test_the_terms_of_the_reward_add_up_and_caps_charge_for_bytes_and_late_windows() -> None:
    limits = Limits(latency_p95_ms=100.0, price_per_kb=0.4, price_late=2.0)
    at = Conditions(uncertainty=0.4, cpu=0.5, bandwidth_mbps=2.0, rtt_ms=60.0)
    found = terms(EARLY, EMBEDDING, UPLINK, Reward(rho=0.3), limits, at)
    assert found.latency_ms == pytest.approx(40 + 20 + 68)
    assert (found.quality, found.learning) == pytest.approx((9.0, 1.2))
    assert (found.delay, found.energy) == pytest.approx((-5 * 128 / 200, -3.0))
    assert found.limits == pytest.approx(-0.4 * 5 - 2.0)
    assert found.total == pytest.approx(9.0 + 1.2 - 3.2 - 3.0 - 4.0)


def test_a_window_that_comes_too_late_counts_as_learnt_in_no_way() -> None:
    early = msgspec.structs.replace(EARLY, name="early+exit", answer="exit", exit_quality=(0.7, 0.6))
    at = Conditions(np.array(0.4), np.array(0.1), np.array([0.01, 8.0]), np.array(60.0))
    for one in (EARLY, early):
        found = terms(one, EMBEDDING, UPLINK, Reward(rho=0.3), Limits(), at)
        assert np.asarray(found.learning).tolist() == pytest.approx([0.0, 1.2]), one.name


def test_the_privacy_floor_and_the_memory_cap_leave_actions_out() -> None:
    sized = [
        msgspec.structs.replace(item, memory_mb=size)
        for item, size in zip((WAVEFORM, EARLY, EMBEDDING), (0.0, 5.0, 40.0), strict=True)
    ]
    radio = load_radio("wifi")

    def names(**limits: object) -> list[str]:
        return [item.name for item in environment_for(sized, radio, Reward(), Limits(**limits)).actions]

    assert names(min_cut="early") == ["early", "embedding"]
    assert names(memory_mb=10.0) == ["waveform", "early"]
    with pytest.raises(UsageError, match=r"memory cap 10 MB: .* less than 40.0 MB"):
        names(min_cut="embedding", memory_mb=10.0)
    with pytest.raises(UsageError, match="privacy floor 'late': the cuts are waveform, early, embedding"):
        names(min_cut="late")


def test_device_only_runs_everything_and_ships_nothing() -> None:
    shipping = dataclasses.replace(ENVIRONMENT, actions=ENVIRONMENT.actions[:3])
    assert with_local(shipping).actions[-1] == ON_DEVICE
    assert with_local(ENVIRONMENT) is ENVIRONMENT


def test_the_rule_of_the_paper() -> None:
    blocks = tuple(action(f"cut{k}", 0.0, 0.0, 1, 0.0, (1.0,), k < 8) for k in range(9))
    environment = Environment((*blocks, ON_DEVICE), UPLINK, Reward())
    cpu, mbps = np.array([[0.0, 1.0, 0.5, 0.2]]), np.array([[20.0, 0.0, 4.0, 2.0]])
    # 8 blocks: floor(8 * 1) clipped to 7; floor(0) clipped to 1; floor(8 * 0.5); floor(8 * (0.48 + 0.1))
    assert heuristic_rule(environment, cpu, mbps).tolist() == [[7, 1, 4, 4]]


def test_the_digest_covers_costs_and_not_the_reward() -> None:
    changed = msgspec.structs.replace(EARLY, bytes=5001)
    assert ENVIRONMENT.digest == dataclasses.replace(ENVIRONMENT, reward=Reward()).digest
    assert ENVIRONMENT.digest != dataclasses.replace(ENVIRONMENT, actions=(WAVEFORM, changed)).digest
    assert ENVIRONMENT.digest != dataclasses.replace(ENVIRONMENT, uplink=Uplink(mj_per_kb=2.0, transmit_w=0.6)).digest


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ((), "different names"),
        ((EARLY, EARLY), "different names"),
        ((msgspec.structs.replace(EARLY, quality=()),), "early: quality"),
        ((msgspec.structs.replace(ON_DEVICE, bytes=1),), "local ships nothing"),
        ((msgspec.structs.replace(ON_DEVICE, teaches=True),), "local ships nothing"),
    ],
)
def test_actions_that_make_no_sense(actions: tuple[ActionCosts, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Environment(actions, UPLINK, Reward())


def test_of_more_actions_than_a_table_may_have_those_stay_that_nothing_beats() -> None:
    useful = [action(f"cut{i}", 2.0 * i, 8.0 * i, 9_000 - 10 * i, 5.0, (0.99,), True) for i in range(20)]
    beaten = [action(f"{one.name}b", one.device_ms + 1, 0.0, one.bytes, 5.0, (0.99,), True) for one in useful]
    costs = [item for pair in zip(useful, beaten, strict=True) for item in pair]
    radio = load_radio("wifi")
    names = [item.name for item in environment_for(costs, radio, Reward()).actions]
    assert names == [*(item.name for item in useful), beaten[-1].name], "the last is the whole encoder, and stays"

    many = [action(f"cut{i}", 2.0 * i, 8.0 * i, 9_000 - 10 * i, 5.0, (0.99,), True) for i in range(60)]
    chosen = [item.name for item in environment_for(many, radio, Reward()).actions]
    assert len(chosen) == MAX_ACTIONS
    assert (chosen[0], chosen[-1]) == ("cut0", "cut59")


def test_widths_that_lose_much_agreement_are_not_offered() -> None:
    plain = action("early", 20.0, 80.0, 9_000, 5.0, (0.99, 0.97), True)
    widths = [
        msgspec.structs.replace(plain, name=f"early/{width}", width=width, bytes=bytes_, quality=quality)
        for width, bytes_, quality in ((8, 60, (0.99, 0.94)), (16, 110, (0.98, 0.96)), (32, 190, (0.985, 0.965)))
    ]
    costs = [WAVEFORM, plain, *widths, ON_DEVICE]

    def offered(**lost: float) -> list[str]:
        return [one.name for one in environment_for(costs, load_radio("wifi"), Reward(), **lost).actions if one.width]

    assert offered() == ["early/32"], "at most 0.005 less than the plain activation, on average"
    assert offered(agreement_lost=0.01) == ["early/16", "early/32"]
    assert offered(agreement_lost=0.02) == ["early/8", "early/16", "early/32"]
    assert offered(agreement_lost=0.0) == []
