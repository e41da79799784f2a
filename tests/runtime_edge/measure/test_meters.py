"""Meters: what a sensor's files say becomes watts, watts become joules, and what nobody can say is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import UsageError
from runtime_edge.measure.meters import Integrated, combined_watts, ina_sensor, open_meter, pmic_watts

PMIC = """\
   3V7_WL_SW_A current(0)=0.10000000A
    VDD_CORE_A current(7)=2.00000000A
   3V7_WL_SW_V volt(8)=3.70000000V
    VDD_CORE_V volt(15)=0.80000000V
      EXT5V_V volt(24)=5.10000000V
"""
POWERMETRICS = b"""\
*** Sampled system activity (Mon Nov 30 00:00:00 2026 +0000) (200.00ms elapsed) ***
CPU Power: 1200 mW
GPU Power: 34 mW
ANE Power: 0 mW
Combined Power (CPU + GPU + ANE): 1234 mW
"""


def sensor(root, number, chip, files):
    folder = root / f"hwmon{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{chip}\n")
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_of_a_jetsons_sensor_the_channel_of_the_supply_is_taken(tmp_path):
    sensor(tmp_path, 0, "cpu_thermal", {"temp1_input": 40000})
    sensor(tmp_path, 1, "ina3221", {
        "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1200,
        "in2_label": "VDD_CPU_GPU_CV", "in2_input": 5000, "curr2_input": 400,
    })  # fmt: skip
    name, watts = ina_sensor(tmp_path)
    assert name == "ina3221 VDD_IN"
    assert watts() == pytest.approx(6.0)  # 5 V, 1.2 A


def test_a_sensor_with_one_channel_needs_no_label(tmp_path):
    sensor(tmp_path, 0, "ina219", {"in1_input": 5000, "curr1_input": 500, "power1_input": 2_490_000})
    name, watts = ina_sensor(tmp_path)
    assert name == "ina219 power1"
    assert watts() == pytest.approx(2.49)


def test_channels_of_which_nobody_says_which_is_the_supply_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no INA sensor"):
        ina_sensor(tmp_path)
    sensor(tmp_path, 0, "ina3221", {"in1_input": 1, "curr1_input": 1, "in2_input": 1, "curr2_input": 1})
    with pytest.raises(UsageError, match="channel 1, ina3221 channel 2: it is unknown which of them is the supply"):
        ina_sensor(tmp_path)


def test_a_sensor_that_says_no_number_is_named(tmp_path):
    sensor(tmp_path, 0, "ina226", {"power1_input": "n/a"})
    with pytest.raises(UsageError, match=r"hwmon0/power1_input says 'n/a', a number was expected"):
        ina_sensor(tmp_path)


def test_a_pi_5s_rails_are_added_up():
    assert pmic_watts(PMIC) == pytest.approx(0.1 * 3.7 + 2.0 * 0.8)
    for text in ("", 'error=1 error_msg="Command not registered"', "EXT5V_V volt(24)=5.1V"):
        with pytest.raises(UsageError, match="pmic"):
            pmic_watts(text)


@given(st.text())
def test_whatever_a_pi_prints_is_watts_or_one_line(text):
    with contextlib.suppress(UsageError):
        assert pmic_watts(text) >= 0


def test_powermetrics_readings_are_read_as_they_come():
    assert list(combined_watts(iter((POWERMETRICS * 2).splitlines()))) == [1.234, 1.234]
    assert list(combined_watts(iter([b"powermetrics must be invoked as the superuser"]))) == []


def test_power_becomes_energy_and_goes_on_until_the_next_reading():
    now = [10.0]
    meter = Integrated("test", 2.0, clock=lambda: now[0])
    now[0] = 11.0
    assert meter.joules() == pytest.approx(2.0)
    meter.reading(4.0)
    assert meter.joules() == pytest.approx(3.0)  # the trapezoid between 2 and 4 W
    now[0] = 11.5
    assert meter.joules() == pytest.approx(5.0)
    meter.failed("unplugged")
    with pytest.raises(UsageError, match="unplugged"):
        meter.joules()


def test_a_meter_that_is_not_there_is_refused_when_it_is_named_and_explained_when_it_is_not():
    with open_meter("none") as (meter, why):
        assert meter is None
        assert why
    with pytest.raises(UsageError, match="--meter volts: there are auto, none, rapl"), open_meter("volts"):
        pass
    with open_meter() as (meter, why):
        assert (meter is None) == bool(why)  # this machine's, if it has one
