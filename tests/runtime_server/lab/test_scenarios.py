import itertools

import numpy as np
import pytest

from runtime_edge.errors import UsageError
from runtime_server.lab.scenarios import SCENARIOS, scenario_named


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
