import itertools

import numpy as np
import pytest

from runtime_edge.errors import FormatError, UsageError
from runtime_server.lab.recorded import RecordedScenario
from runtime_server.lab.scenarios import SCENARIOS, ScenarioStep, scenario_named


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_steps_are_in_order_in_range_and_the_seeds(scenario):
    steps = scenario.steps(60.0, seed=3)
    assert steps == scenario.steps(60.0, seed=3)
    assert steps[0].at_s == 0.0
    assert all(before.at_s < after.at_s for before, after in itertools.pairwise(steps))
    for step in steps:
        assert scenario.mbps[0] <= step.mbps <= scenario.mbps[1]
        assert scenario.rtt_ms[0] <= step.rtt_ms <= scenario.rtt_ms[1]
        assert step.cpu in scenario.cpu
    assert any(step.outage for step in steps) == (scenario.name == "outage")
    if scenario.mbps[0] < scenario.mbps[1]:
        assert steps != scenario.steps(60.0, seed=4)


def test_traces_are_the_steps_window_by_window():
    scenario = SCENARIOS["outage"]
    traces = scenario.traces(2, 60, seed=5)
    steps = scenario.steps(30.0, seed=6)
    for window in range(60):
        step = [step for step in steps if step.at_s <= window * 0.5][-1]
        assert traces.bandwidth_mbps[0, window] == (0.0 if step.outage else step.mbps)
        assert abs(traces.rtt_ms[0, window] - step.rtt_ms) <= step.jitter_ms
    assert not np.array_equal(traces.bandwidth_mbps[0], traces.bandwidth_mbps[1])


def test_an_unknown_scenario_is_refused_by_name():
    with pytest.raises(UsageError, match="lora-gateway"):
        scenario_named("satellite")


def test_a_recorded_trace_is_played_line_by_line_and_again(tmp_path):
    path = tmp_path / "walk.csv"
    path.write_text("time_s,bandwidth_mbps,rtt_ms,cpu\n100,4,60,0.1\n101,0,60,0.2\n102,2,80,0.3\n")
    walk = RecordedScenario.read(path)
    assert walk.name == "walk"
    assert walk.steps(4.5, seed=0) == [
        ScenarioStep(0.0, 4.0, 60.0, 0.0, 0.1),
        ScenarioStep(1.0, 0.01, 60.0, 0.0, 0.2, outage=True),
        ScenarioStep(2.0, 2.0, 80.0, 0.0, 0.3),
        ScenarioStep(3.0, 4.0, 60.0, 0.0, 0.1),
        ScenarioStep(4.0, 0.01, 60.0, 0.0, 0.2, outage=True),
    ]
    traces = walk.traces(3, 12, seed=1)
    assert sorted(set(traces.bandwidth_mbps.ravel())) == [0.0, 2.0, 4.0]
    assert ((traces.rtt_ms == 80.0) == (traces.cpu == 0.3)).all()
    path.write_text("time_s,bandwidth_mbps,rtt_ms\n0,1,1\n")
    with pytest.raises(FormatError, match="cpu"):
        RecordedScenario.read(path)
