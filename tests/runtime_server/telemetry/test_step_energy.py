"""What steps take, with idle power and without, and a source that fails."""

import pytest

from runtime_edge.errors import FormatError
from runtime_server.telemetry.step_energy import EnergyUse, StepEnergy


class Source:
    name = "a meter"

    def __init__(self, idle_w=None):
        self.idle_w, self.used, self.broken = idle_w, 50.0, False

    def joules(self):
        if self.broken:
            raise FormatError("meter.csv: no reading")
        return self.used


def test_only_steps_are_counted_with_idle_power_and_above_it():
    source, now = Source(idle_w=2.0), [10.0]
    energy = StepEnergy(source, lambda: now[0])
    for used, seconds in ((6.0, 1.0), (10.0, 3.0)):
        with energy.step():
            source.used += used
            now[0] += seconds
        source.used += 100.0  # between two steps
        now[0] += 50.0
    assert energy.use == EnergyUse("a meter", 2, 4.0, 16.0, 2.0)
    assert energy.use.above_idle_joules == pytest.approx(16.0 - 2.0 * 4.0)
    assert (energy.use.joules_a_step, energy.use.above_idle_a_step) == (8.0, 4.0)
    assert energy.use.told() == {
        "source": "a meter", "steps": 2, "seconds": 4.0, "joules": 16.0, "idle_w": 2.0,
        "above_idle_joules": 8.0, "joules_a_step": 8.0, "above_idle_a_step": 4.0,
    }  # fmt: skip


def test_nothing_is_made_up_before_a_step_or_without_idle_power():
    energy = StepEnergy(Source())
    assert (energy.use.joules_a_step, energy.use.above_idle_a_step) == (None, None)
    with energy.step():
        pass
    assert energy.use.joules_a_step == 0.0
    assert energy.use.above_idle_joules is energy.use.above_idle_a_step is None


def test_a_source_that_fails_ends_the_count_with_a_warning_and_not_the_step(caplog):
    source = Source()
    energy, steps = StepEnergy(source), 0
    for broken in (False, True, False):
        with energy.step():
            source.broken, steps = broken, steps + 1
            source.used += 1.0
    assert steps == 3
    assert energy.use.steps == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the energy of training is no longer counted: meter.csv: no reading"
    ]
