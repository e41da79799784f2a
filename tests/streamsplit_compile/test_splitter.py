"""Training on a ResNet-18-like encoder: near the optimum, better than any fixed cut, reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_edge.errors import TableError
from runtime_edge.splitter import Splitter
from runtime_edge.table import LOCAL, MAX_TABLE_BYTES, Reward, SplitterTable, StateAxis
from streamsplit_compile.environment import ActionCosts, Environment, environment_for, simulate
from streamsplit_compile.qlearning import rows_of
from streamsplit_compile.splitter import evaluate, play, train_table
from streamsplit_compile.targets import load_target
from streamsplit_compile.traces import TraceModel, Traces, observe, synthetic_traces

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


def resnet18_costs(watts: float = 3.7) -> list[ActionCosts]:
    return [
        ActionCosts(
            name=name,
            device_ms=ms,
            device_mj=watts * ms,
            bytes=size,
            server_ms=0.0 if name == LOCAL else 3.0 + 0.1 * (72 - ms),
            quality=INT8_QUALITY if name.startswith("layer") else (1.0,),
            teaches=name not in ("embedding", LOCAL),
        )
        for name, ms, size in RESNET18
    ]


@pytest.fixture(scope="module")
def table() -> SplitterTable:
    return train_table(resnet18_costs(), load_target("rpi4"), encoder="resnet18", cut_names=CUTS, seed=0)


@pytest.fixture(scope="module")
def environment() -> Environment:
    return environment_for(resnet18_costs(), load_target("rpi4"), Reward())


@pytest.mark.parametrize("seed", [101, 102])
def test_on_unseen_traces_it_beats_every_fixed_cut_and_the_rule_and_is_near_the_optimum(
    table: SplitterTable, environment: Environment, seed: int
) -> None:
    unseen = synthetic_traces(TraceModel(), 128, 600, seed)
    result = evaluate(table, environment, unseen)
    assert set(result.fixed) == {*CUTS, LOCAL}
    assert result.reward > max(result.fixed.values()) + 0.3
    assert result.reward > result.rule + 1.0
    assert result.regret <= 0.02
    assert result.changes_per_minute < 20  # at most one in three seconds


def test_the_evaluation_agrees_with_a_plain_loop(table: SplitterTable, environment: Environment) -> None:
    unseen = synthetic_traces(TraceModel(), 3, 50, 9)
    outcome, observed = simulate(environment, unseen), observe(unseen)
    rewards, sizes, changes = [], [], 0
    for trace in range(3):
        current = None
        for window in range(50):
            q = table.q[table.lookup({name: values[trace, window] for name, values in observed.items()})]
            best = int(np.argmax(q))
            if current is None:
                current = best
            elif q[best] - q[current] > table.hysteresis:
                current, changes = best, changes + 1
            rewards.append(outcome.reward[trace, window, current])
            sizes.append(table.action_bytes[current])
    result = evaluate(table, environment, unseen)
    assert result.reward == pytest.approx(np.mean(rewards))
    assert result.mb_per_hour == pytest.approx(np.mean(sizes) * 7200 / 1e6)
    assert result.changes_per_minute == pytest.approx(changes / (150 / 120))
    assert result.fixed["layer2"] == pytest.approx(outcome.reward[..., 2].mean())


def test_the_device_plays_what_the_evaluation_plays() -> None:
    axes = (
        StateAxis(name="cpu", edges=(0.2, 0.5)),
        StateAxis(name="bandwidth_mbps", edges=(1.0, 2.0, 4.0)),
        StateAxis(name="rtt_ms", edges=(100.0,)),
    )
    table = train_table(
        resnet18_costs(0.8),
        load_target("rpi4"),
        encoder="resnet18",
        cut_names=CUTS,
        axes=axes,
        probe_rate=0.0,
        traces=synthetic_traces(TraceModel(), 128, 200, 1),
        held_out=synthetic_traces(TraceModel(), 16, 200, 2),
    )
    observed = observe(synthetic_traces(TraceModel(), 4, 300, 3))
    played = play(table, rows_of(observed, axes))
    for trace in range(4):
        splitter = Splitter(table, CUTS)
        for window in range(300):
            cpu, mbps, rtt = (observed[name][trace, window] for name in ("cpu", "bandwidth_mbps", "rtt_ms"))
            assert splitter.choose(None, cpu, mbps, rtt).action == played[trace, window]


def test_the_policy_is_what_one_would_expect(table: SplitterTable) -> None:
    def choice(mbps: float, cpu: float = 0.1, rtt_ms: float = 60.0, uncertainty: float = 0.3) -> str:
        state = {"uncertainty": uncertainty, "cpu": cpu, "bandwidth_mbps": mbps, "rtt_ms": rtt_ms}
        return table.actions[table.policy[table.lookup(state)]]

    assert choice(mbps=8.0, cpu=0.8) == "waveform"  # fast link, busy processor: let the server do it
    assert choice(mbps=0.5, rtt_ms=200.0) == LOCAL  # slow link, idle processor: stay at home


def test_intermediate_cuts_are_taken_when_they_pay() -> None:
    frugal = [
        ActionCosts("waveform", 0, 0, 32_000, 5, (1.0,), True),
        ActionCosts("middle", 20, 20, 2_000, 4, (0.99,), True),
        ActionCosts("embedding", 60, 60, 128, 3, (1.0,), False),
        ActionCosts(LOCAL, 60, 60, 0, 0, (1.0,), False),
    ]
    table = train_table(
        frugal,
        load_target("rpi4"),
        encoder="e",
        cut_names=["waveform", "middle", "embedding"],
        reward=Reward(rho=0.5),
        traces=synthetic_traces(TraceModel(), 256, 300, 1),
    )
    used = {table.actions[best] for best in table.policy}
    assert {"middle", LOCAL} <= used
    # The more uncertain the window, the more often it is shipped for the server to learn from.
    quarter = len(table.policy) // (len(table.state[0].edges) + 1)
    sure, unsure = table.policy[:quarter], table.policy[-quarter:]
    assert sum(best == 1 for best in unsure) > sum(best == 1 for best in sure)


def test_the_same_arguments_give_the_same_bytes(table: SplitterTable) -> None:
    again = train_table(resnet18_costs(), load_target("rpi4"), encoder="resnet18", cut_names=CUTS, seed=0)
    assert again.to_json() == table.to_json()


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
        ActionCosts("waveform", 0, 0, 32_000, 500, (0.1,), True),
        ActionCosts(LOCAL, 1, 1, 0, 0, (1.0,), False),
    ]
    train, test = synthetic_traces(TraceModel(), 32, 100, 0), synthetic_traces(TraceModel(), 8, 100, 1)
    table = train_table(costs, load_target("m2"), encoder="e", cut_names=["waveform"], traces=train, held_out=test)
    assert set(table.policy) == {1}
    assert table.metrics["regret"] == 0.0


@pytest.mark.parametrize("cuts", [25, 63])
def test_many_cuts_get_fewer_bins_and_a_table_that_still_fits(cuts: int) -> None:
    names = [f"blocks.{index}.residual" for index in range(cuts)]
    costs = [
        ActionCosts(name, 3.0 * index, 11.0 * index, 32_000 // (index + 1), 5.0, (1.0,), True)
        for index, name in enumerate(names)
    ]
    tiny = synthetic_traces(TraceModel(), 64, 100, 0)
    table = train_table(costs, load_target("rpi4"), encoder="e", cut_names=names, traces=tiny, held_out=tiny)
    assert table.actions == tuple(names)
    assert [axis.name for axis in table.state] == ["uncertainty", "cpu", "bandwidth_mbps", "rtt_ms"]
    assert len(table.to_json()) <= MAX_TABLE_BYTES


def test_constant_conditions_train_without_bins() -> None:
    shape = (4, 50)
    still = Traces(np.full(shape, 0.3), np.full(shape, 0.0), np.full(shape, 2.0), np.full(shape, 60.0))
    table = train_table(
        resnet18_costs(), load_target("rpi4"), encoder="e", cut_names=CUTS, traces=still, held_out=still
    )
    rewards = simulate(environment_for(resnet18_costs(), load_target("rpi4"), Reward()), still).reward[0, 0]
    row = table.lookup({"uncertainty": 0.3, "cpu": 0.0, "bandwidth_mbps": 2.0, "rtt_ms": 60.0})
    assert table.policy[row] == rewards.argmax()


def test_actions_that_are_no_cuts_of_the_bundle_are_refused() -> None:
    tiny = synthetic_traces(TraceModel(), 4, 20, 0)
    with pytest.raises(TableError, match="no cut 'layer4'"):
        train_table(
            resnet18_costs(),
            load_target("rpi4"),
            encoder="e",
            cut_names=[cut for cut in CUTS if cut != "layer4"],
            traces=tiny,
            held_out=tiny,
        )
