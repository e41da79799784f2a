"""Training on a ResNet-18-like encoder: near the optimum, better than any fixed cut, reproducible."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from priced_actions import action

from runtime_edge.errors import CheckFailed, TableError, UsageError
from runtime_edge.formats.records.actions import ActionCosts
from runtime_edge.formats.records.table import (
    LOCAL,
    MAX_ACTIONS,
    MAX_TABLE_BYTES,
    Limits,
    Reward,
    SplitterTable,
    StateAxis,
)
from runtime_edge.policy.splitter import Splitter
from streamsplit_compile.cost.radios import radio_on
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.splitter.environment import Environment, environment_for, simulate
from streamsplit_compile.splitter.evaluation import LATE_SHARE, evaluate
from streamsplit_compile.splitter.policies import play
from streamsplit_compile.splitter.table_training import TableOptions, train_table
from streamsplit_compile.splitter.traces import TraceModel, Traces, observe, synthetic_traces

pytestmark = pytest.mark.integration

# Cut, milliseconds of the prefix on a Raspberry Pi 4, payload bytes.
RESNET18 = [
    ("waveform", 0, 32_000),
    ("layer1", 25, 25_000),
    ("layer2", 40, 15_000),
    ("layer3", 55, 8_000),
    ("layer4", 70, 4_000),
    ("embedding", 72, 128),
    (LOCAL, 72, 0),
]
CUTS = [name for name, _, _ in RESNET18[:-1]]
INT8_QUALITY = (0.99, 0.985, 0.98, 0.97)


BUNDLE = "sha256:" + "2" * 64


def resnet18_costs(watts: float = 3.7) -> list[ActionCosts]:
    return [
        action(
            name,
            ms,
            watts * ms,
            size,
            0.0 if name == LOCAL else 3.0 + 0.1 * (72 - ms),
            INT8_QUALITY if name.startswith("layer") else (1.0,),
            name not in ("embedding", LOCAL),
        )
        for name, ms, size in RESNET18
    ]


def lte(traces: int, windows: int, seed: int) -> Traces:
    return synthetic_traces(TraceModel(), traces, windows, seed)


def resnet18(limits: Limits | None = None, watts: float = 3.7) -> Environment:
    return environment_for(resnet18_costs(watts), radio_on(load_target("rpi4")), Reward(), limits)


def train(environment: Environment, cuts: list[str] = CUTS, **changes: object) -> SplitterTable:
    settings = {"traces": lte(256, 300, 0), "held_out": lte(64, 300, 1_000_003)} | changes
    return train_table(environment, target="rpi4", encoder="resnet18", cut_names=cuts, bundle=BUNDLE, **settings)


@pytest.fixture(scope="module")
def environment() -> Environment:
    return resnet18()


@pytest.fixture(scope="module")
def table(environment: Environment) -> SplitterTable:
    return train(environment)


@pytest.mark.parametrize("seed", [101, 102])
def test_on_unseen_traces_it_beats_every_fixed_cut_and_the_rule_and_is_near_the_optimum(
    table: SplitterTable, seed: int
) -> None:
    found = evaluate(table, lte(128, 600, seed))
    assert set(found.fixed) == {*CUTS, LOCAL}
    assert found.table.reward > max(fixed.reward for fixed in found.fixed.values()) + 0.3
    assert found.table.reward > found.rule.reward + 1.0
    assert found.regret <= 0.02
    assert found.table.changes_per_minute < 20  # at most one in three seconds
    assert found.device_only == found.fixed[LOCAL]


def test_the_evaluation_agrees_with_a_plain_loop(table: SplitterTable, environment: Environment) -> None:
    unseen = lte(3, 80, 9)
    outcome, observed = simulate(environment, unseen), observe(unseen)
    rewards, sizes, changes = [], [], 0
    for trace in range(3):
        splitter, current = Splitter(quiet(table), CUTS, uncertainty_smoothing=1.0), None
        for window in range(80):
            seen = (observed[name][trace, window] for name in ("uncertainty", "cpu", "bandwidth_mbps", "rtt_ms"))
            chosen = splitter.choose(*seen).action
            changes += current not in (None, chosen)
            current = chosen
            rewards.append(outcome.reward[trace, window, current])
            sizes.append(table.action_bytes[current])
    found = evaluate(quiet(table), unseen)
    assert changes > 0
    assert found.table.reward == pytest.approx(np.mean(rewards))
    assert found.table.mb_per_hour == pytest.approx(np.mean(sizes) * 7200 / 1e6)
    assert found.table.changes_per_minute == pytest.approx(changes / (240 / 120))
    assert found.fixed["layer2"].reward == pytest.approx(outcome.reward[..., 2].mean())


def quiet(table: SplitterTable) -> SplitterTable:
    return msgspec.structs.replace(table, probe_rate=0.0)


@pytest.mark.parametrize(
    "behaviour",
    [
        {},
        {"dwell": 0},
        {"dead_band": 0.0},
        {"dead_band": 0.3, "hysteresis": 0.0},
        {"limits": Limits(mb_per_hour=60.0)},
        {"limits": Limits(mb_per_hour=1.5)},
    ],
)
def test_the_device_plays_what_the_evaluation_plays(table: SplitterTable, behaviour: dict[str, object]) -> None:
    changed = msgspec.structs.replace(quiet(table), **behaviour)
    observed = observe(lte(6, 300, 3))
    played = play(changed, observed)
    assert len(np.unique(played)) > 1
    for trace in range(6):
        splitter = Splitter(changed, CUTS, uncertainty_smoothing=1.0)
        for window in range(300):
            seen = (observed[name][trace, window] for name in ("uncertainty", "cpu", "bandwidth_mbps", "rtt_ms"))
            assert splitter.choose(*seen).action == played[trace, window]


def test_exploration_is_charged_to_the_bytes(table: SplitterTable) -> None:
    unseen = lte(32, 200, 4)
    often, never = (evaluate(msgspec.structs.replace(table, probe_rate=rate), unseen).table for rate in (0.2, 0.0))
    assert often.reward == never.reward
    assert often.mb_per_hour > never.mb_per_hour + 1.0


def test_the_policy_is_what_one_would_expect(table: SplitterTable) -> None:
    def choice(mbps: float, cpu: float = 0.1, rtt_ms: float = 60.0, uncertainty: float = 0.3) -> str:
        state = {"uncertainty": uncertainty, "cpu": cpu, "bandwidth_mbps": mbps, "rtt_ms": rtt_ms}
        return table.actions[table.policy[table.lookup(state)]]

    assert choice(mbps=8.0, cpu=0.8) == "waveform"  # fast link, busy processor: let the server do it
    assert choice(mbps=0.5, rtt_ms=200.0) == LOCAL  # slow link, idle processor: stay at home


def test_intermediate_cuts_are_taken_when_they_pay() -> None:
    frugal = [
        action("waveform", 0, 0, 32_000, 5, (1.0,), True),
        action("middle", 20, 20, 2_000, 4, (0.99,), True),
        action("embedding", 60, 60, 128, 3, (1.0,), False),
        action(LOCAL, 60, 60, 0, 0, (1.0,), False),
    ]
    environment = environment_for(frugal, radio_on(load_target("rpi4")), Reward(rho=0.5))
    table = train(environment, ["waveform", "middle", "embedding"])
    used = {table.actions[best] for best in table.policy}
    assert {"middle", LOCAL} <= used
    # The more uncertain the window, the more often it is shipped for the server to learn from.
    share = len(table.policy) // (len(table.state[0].edges) + 1)
    sure, unsure = table.policy[:share], table.policy[-share:]
    assert sum(best == 1 for best in unsure) > sum(best == 1 for best in sure)


def test_the_same_arguments_give_the_same_bytes(table: SplitterTable, environment: Environment) -> None:
    assert train(environment).to_json() == table.to_json()


def test_the_file_is_complete_small_and_readable_again(table: SplitterTable, environment: Environment) -> None:
    data = table.to_json()
    assert len(data) < MAX_TABLE_BYTES
    assert SplitterTable.from_json(data, "t.json") == table
    assert table.costs_digest == environment.digest
    assert table.metrics["regret"] <= 0.02
    assert table.metrics["reward"] > table.metrics["best_fixed"] > table.metrics["rule"]
    table.check_cuts(CUTS)


def test_where_nothing_beats_one_action_regret_is_small_and_finite() -> None:
    costs = [
        action("waveform", 0, 0, 32_000, 500, (0.1,), True),
        action(LOCAL, 1, 1, 0, 0, (1.0,), False),
    ]
    environment = environment_for(costs, radio_on(load_target("m2")), Reward())
    table = train(environment, ["waveform"], traces=lte(32, 100, 0), held_out=lte(8, 100, 1))
    assert set(table.policy) == {1}
    assert table.metrics["regret"] == 0.0


@pytest.mark.parametrize("cuts", [8, 25, 63])
def test_many_cuts_get_fewer_bins_and_a_table_that_still_fits(cuts: int) -> None:
    names = [f"blocks.{index}.residual" for index in range(cuts)]
    costs = [
        action(name, 3.123 * index, 11.456 * index, 32_000 // (index + 1), 5.0, (0.998765,), True)
        for index, name in enumerate(names)
    ]
    tiny = lte(64, 100, 0)
    table = train(environment_for(costs, radio_on(load_target("rpi4")), Reward()), names, traces=tiny, held_out=tiny)
    assert len(table.actions) == min(cuts, MAX_ACTIONS)
    assert (table.actions[0], table.actions[-1]) == (names[0], names[-1])
    assert [axis.name for axis in table.state] == ["uncertainty", "cpu", "bandwidth_mbps", "rtt_ms"]
    assert len(table.to_json()) <= MAX_TABLE_BYTES


def test_constant_conditions_train_without_bins(environment: Environment) -> None:
    shape = (4, 50)
    still = Traces(np.full(shape, 0.3), np.full(shape, 0.0), np.full(shape, 2.0), np.full(shape, 60.0))
    table = train(environment, traces=still, held_out=still)
    rewards = simulate(environment, still).reward[0, 0]
    row = table.lookup({"uncertainty": 0.3, "cpu": 0.0, "bandwidth_mbps": 2.0, "rtt_ms": 60.0})
    assert table.policy[row] == rewards.argmax()


def test_given_bins_are_taken_and_must_be_in_the_traces(environment: Environment) -> None:
    bins = (StateAxis(name="cpu", edges=(0.4,)), StateAxis(name="bandwidth_mbps", edges=(1.0, 3.0)))
    tiny = lte(32, 100, 0)
    table = train(environment, traces=tiny, held_out=tiny, options=TableOptions(bins=bins))
    given = {axis.name: axis for axis in table.state}
    assert list(given) == ["uncertainty", "cpu", "bandwidth_mbps", "rtt_ms"]
    assert (given["cpu"], given["bandwidth_mbps"]) == bins
    assert len(table.q) == 6 * (len(given["uncertainty"].edges) + 1) * (len(given["rtt_ms"].edges) + 1)
    ignored = tuple(StateAxis(name=name, edges=()) for name in ("uncertainty", "rtt_ms"))
    table = train(environment, traces=tiny, held_out=tiny, options=TableOptions(bins=(*bins, *ignored)))
    assert len(table.q) == 6
    hot = (StateAxis(name="temperature_c", edges=(60.0,)),)
    with pytest.raises(UsageError, match="bins of temperature_c: the traces do not have it, only uncertainty"):
        train(environment, traces=tiny, held_out=tiny, options=TableOptions(bins=hot))


def test_actions_that_are_no_cuts_of_the_bundle_are_refused(environment: Environment) -> None:
    tiny = lte(4, 20, 0)
    with pytest.raises(TableError, match="no cut 'layer4'"):
        train(environment, [cut for cut in CUTS if cut != "layer4"], traces=tiny, held_out=tiny)


def test_a_cap_on_bytes_holds_on_unseen_traces_and_costs_little() -> None:
    free = train(resnet18())
    cap = free.metrics["mb_per_hour"] / 2
    capped = train(resnet18(Limits(mb_per_hour=cap)))
    assert capped.limits.price_per_kb > 0
    assert evaluate(capped, lte(64, 600, 21)).regret < 0.1
    assert capped.metrics["mb_per_hour"] <= cap
    assert capped.metrics["mb_per_hour"] > cap / 2  # what may be spent is not thrown away
    fast = synthetic_traces(TraceModel(bandwidth_mbps=(20.0, 40.0), rtt_ms=(5.0, 10.0)), 4, 14_400, 5)
    chosen = play(capped, observe(fast))
    hourly = np.asarray(capped.action_bytes)[chosen].reshape(4, -1, 7200).sum(2)
    assert hourly.max() <= cap * 1e6  # whatever the link: the device holds itself to it


def test_a_cap_on_latency_holds_on_unseen_traces() -> None:
    free = train(resnet18(watts=8.0))  # energy drives it to the server, and to long transfers
    cap = free.metrics["latency_p95_ms"] * 0.85
    capped = train(resnet18(Limits(latency_p95_ms=cap), watts=8.0))
    assert capped.limits.price_late > 0
    assert capped.metrics["latency_p95_ms"] <= cap < free.metrics["latency_p95_ms"]
    found = evaluate(capped, lte(64, 300, 21)).table
    assert found.latency_p95_ms <= cap * 1.05


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(latency_p95_ms=20.0), r"latency cap 20 ms: whatever the cuts, \d+% of windows .* later, and 5% may be"),
        (Limits(mb_per_hour=0.1, min_cut="layer1"), None),
    ],
)
def test_caps_that_cannot_be_kept_are_one_line(limits: Limits, message: str | None) -> None:
    if message is None:  # without `local` even the smallest frame is too much
        shipping = [item for item in resnet18_costs() if item.name != LOCAL]
        environment = environment_for(shipping, radio_on(load_target("rpi4")), Reward(), limits)
        message = r"bytes cap 0.1 MB/h: the smallest cut ships 0.92 MB/h; raise it"
    else:
        environment = resnet18(limits)
    with pytest.raises(CheckFailed, match=message):
        train(environment)
    assert LATE_SHARE == 0.05
