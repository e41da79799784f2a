"""What is said of what training took: up to an accuracy, above idle, and by what it was counted."""

from __future__ import annotations

from typing import Any

import pytest

from runtime_server.telemetry.step_energy import EnergyUse
from tools.training_energy import IDLE_S, Progress, table, with_idle_power


def use(steps: int) -> EnergyUse:
    return EnergyUse("RAPL of package-0", steps, steps * 0.5, steps * 10.0, 4.0)


class Counter:
    name = "a meter"

    def __init__(self, idle_w: float | None = None) -> None:
        self.idle_w, self.used = idle_w, 7.0

    def joules(self) -> float:
        return self.used


def test_the_energy_up_to_an_accuracy_is_that_of_the_first_pass_that_reached_it() -> None:
    progress = Progress([(0.3, use(1)), (0.6, use(2)), (0.5, use(3))])
    assert progress.until(0.5) == use(2)
    assert progress.until(0.7) is None


def test_idle_power_is_measured_unless_the_source_brings_it() -> None:
    source, now = Counter(), [5.0]

    def sleep(seconds: float) -> None:
        source.used += 3.0 * seconds
        now[0] += seconds

    assert with_idle_power(source, sleep, lambda: now[0]).idle_w == pytest.approx(3.0)
    assert now[0] == 5.0 + IDLE_S
    assert with_idle_power(Counter(2.5), sleep, lambda: now[0]).idle_w == 2.5
    assert now[0] == 5.0 + IDLE_S


def test_the_table_names_the_source_of_every_figure() -> None:
    found: dict[str, Any] = {
        "objective": "moco", "accuracy": 0.5, "after_each_pass": [0.4, 0.55], "energy": use(4).told(),
        "to_accuracy": use(2).told(), "peak_memory": {"bytes": 123_400_000, "source": "getrusage"},
        "received": {"bytes": 5_600_000, "source": "payloads"},
    }  # fmt: skip
    lines = table([found, {**found, "objective": "simsiam", "to_accuracy": None}]).splitlines()
    assert "J to 50% of windows" in lines[0]
    assert lines[2] == "| moco | 10 | 8 | 20 | 16 | 55.0% | 123 MB | 5.60 MB |"
    assert lines[3] == "| simsiam | 10 | 8 | not reached | not reached | 55.0% | 123 MB | 5.60 MB |"
    assert lines[5] == "Counted by: RAPL of package-0; getrusage; payloads."
