"""A recorded trace as a scenario: link and load from a CSV file, line by line (`splitter.trace_csv`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_server.lab.scenarios import ScenarioStep
from streamsplit_compile.cost.radios import DEFAULT_LINK
from streamsplit_compile.splitter.trace_csv import Columns, read_csv
from streamsplit_compile.splitter.traces import STEP_S, TraceModel, Traces, synthetic_traces

LEAST_MBPS = 0.01
"""The slowest link that counts as up; below this, it is an outage."""


@dataclass(frozen=True)
class RecordedScenario:
    """Played from its first line, and again from there if the run is longer than the recording."""

    name: str
    what: str
    columns: Columns
    lasts_s: float
    """When the last line stops applying: one line's usual length after it."""
    link: str = DEFAULT_LINK
    """The link whose radio the device has; the recording does not contain it."""

    @classmethod
    def read(cls, path: Path, link: str = DEFAULT_LINK) -> RecordedScenario:
        """Read a trace. Raises FormatError naming file, line and column."""
        columns = read_csv(path)
        times = columns["time_s"] - columns["time_s"][0]
        lasts_s = float(times[-1] + np.median(np.diff(times)))
        return cls(path.stem, f"recorded: {path.name}, {lasts_s:.0f} s", {**columns, "time_s": times}, lasts_s, link)

    def steps(self, seconds: float, seed: int) -> list[ScenarioStep]:
        """The steps from 0 to `seconds`; the seed changes nothing."""
        times = self.columns["time_s"]
        rounds = int(np.ceil(seconds / self.lasts_s))
        return [
            self._step(line, float(again * self.lasts_s + times[line]))
            for again in range(rounds)
            for line in range(times.size)
            if again * self.lasts_s + times[line] < seconds
        ]

    def traces(self, count: int, windows: int, seed: int) -> Traces:
        """The recording from `count` random starting points, window by window."""
        starts_s = np.random.default_rng(seed).uniform(0, self.lasts_s, count)
        at_s = (starts_s[:, None] + np.arange(windows) * STEP_S) % self.lasts_s
        line = np.searchsorted(self.columns["time_s"], at_s, side="right") - 1
        uncertainty = self.columns.get("uncertainty")
        return Traces(
            synthetic_traces(TraceModel(), count, windows, seed).uncertainty
            if uncertainty is None
            else uncertainty[line],
            self.columns["cpu"][line],
            self.columns["bandwidth_mbps"][line],
            self.columns["rtt_ms"][line],
        )

    def _step(self, line: int, at_s: float) -> ScenarioStep:
        mbps, rtt_ms, cpu = (float(self.columns[name][line]) for name in ("bandwidth_mbps", "rtt_ms", "cpu"))
        return ScenarioStep(at_s, max(mbps, LEAST_MBPS), rtt_ms, 0.0, cpu, outage=mbps < LEAST_MBPS)
