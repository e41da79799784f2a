"""The lab's scenarios: the steps of link and processor by scenario and seed, the same for every policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from runtime_edge.errors import UsageError
from streamsplit_compile.splitter.traces import STEP_S, TraceModel, Traces, synthetic_traces


@dataclass(frozen=True)
class ScenarioStep:
    """The conditions from a moment on."""

    at_s: float
    mbps: float
    """The same in both directions."""
    rtt_ms: float
    jitter_ms: float
    cpu: float
    """Share of the device's processor that another program demands."""
    outage: bool = False


@dataclass(frozen=True)
class Scenario:
    """A link and a processor over time, as in docs/method.md, section 6, but changing more often for short runs."""

    name: str
    what: str
    mbps: tuple[float, float]
    """Levels are lognormal around the geometric mean of both ends."""
    rtt_ms: tuple[float, float]
    jitter_ms: float
    link: str = "wifi"
    """The link whose radio the device has (`cost.radios`)."""
    change_s: float = 5.0
    cpu: tuple[float, ...] = (0.0,)
    """Levels of load; each step moves to a neighbouring one."""
    outage_s: tuple[float, float] | None = None
    """Range of the outage's duration in the second half of each level."""

    def steps(self, seconds: float, seed: int) -> list[ScenarioStep]:
        """The steps from 0 to `seconds`."""
        random = np.random.default_rng((seed, sum(self.name.encode())))
        low, high = self.mbps
        level = int(random.integers(len(self.cpu)))
        steps: list[ScenarioStep] = []
        for index in range(math.ceil(seconds / self.change_s)):
            at_s = index * self.change_s
            spread = math.log(high / low) / 4  # the range is four standard deviations wide
            mbps = float(np.clip(math.exp(math.log(low * high) / 2 + spread * random.normal()), low, high))
            steps.append(ScenarioStep(at_s, mbps, float(random.uniform(*self.rtt_ms)), self.jitter_ms, self.cpu[level]))
            if self.outage_s is not None:
                lasts_s = float(random.uniform(*self.outage_s))
                steps += [
                    replace(steps[-1], at_s=at_s + self.change_s / 2, outage=True),
                    replace(steps[-1], at_s=at_s + self.change_s / 2 + lasts_s),
                ]
            level = int(np.clip(level + random.choice((-1, 1)), 0, len(self.cpu) - 1))
        return steps

    def traces(self, count: int, windows: int, seed: int) -> Traces:
        """Many runs as the splitter's environment expects them; each window has the step that applies at its time."""
        uncertainty = synthetic_traces(TraceModel(), count, windows, seed).uncertainty
        shape = (count, windows)
        traces = Traces(uncertainty, np.zeros(shape), np.zeros(shape), np.zeros(shape))
        random = np.random.default_rng(seed)
        for row in range(count):
            steps = self.steps(windows * STEP_S, seed + 1 + row)
            starts = [step.at_s for step in steps]
            for window in range(windows):
                step = steps[int(np.searchsorted(starts, window * STEP_S, side="right")) - 1]
                traces.cpu[row, window] = step.cpu
                traces.bandwidth_mbps[row, window] = 0.0 if step.outage else step.mbps
                traces.rtt_ms[row, window] = max(1.0, step.rtt_ms + random.uniform(-step.jitter_ms, step.jitter_ms))
        return traces


class Playable(Protocol):
    """What the lab can play: a `Scenario`, or a recorded one."""

    @property
    def name(self) -> str:
        """The name of its runs and pictures."""

    @property
    def what(self) -> str:
        """A description in one line."""

    @property
    def link(self) -> str:
        """The link whose radio the device has: a name or a file."""

    def steps(self, seconds: float, seed: int) -> list[ScenarioStep]:
        """The steps from 0 to `seconds`."""

    def traces(self, count: int, windows: int, seed: int) -> Traces:
        """Traces for the exact optimum, as the splitter's environment expects them."""


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("lte", "0.5 to 8 Mbit/s, 50 to 200 ms", (0.5, 8.0), (50.0, 200.0), 15.0, link="lte"),
        Scenario(
            "lte-router",
            "LTE, whose modem is a router's; the device reaches it over Wi-Fi",
            (0.5, 8.0),
            (50.0, 200.0),
            15.0,
        ),
        Scenario("wifi", "2 to 50 Mbit/s, 5 to 40 ms", (2.0, 50.0), (5.0, 40.0), 5.0),
        Scenario("lora-gateway", "50 kbit/s, 100 to 200 ms", (0.05, 0.05), (100.0, 200.0), 15.0, link="lora"),
        Scenario(
            "busy-pi",
            "Wi-Fi, and another program on the device's processor",
            (8.0, 20.0),
            (10.0, 30.0),
            5.0,
            cpu=(0.05, 0.3, 0.55, 0.8),
        ),
        Scenario(
            "outage",
            "LTE, away for 2 to 4 s every 15 s",
            (0.5, 8.0),
            (50.0, 200.0),
            15.0,
            link="lte",
            change_s=15.0,
            outage_s=(2.0, 4.0),
        ),
    )
}


def scenario_named(name: str) -> Scenario:
    """The scenario of this name. Raises UsageError for an unknown one."""
    if name not in SCENARIOS:
        raise UsageError(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
