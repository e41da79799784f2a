from types import SimpleNamespace

import psutil
import pytest
from msgspec.structs import replace

from runtime_edge.config import DeviceConfig
from runtime_edge.errors import TableError
from runtime_edge.formats.records.table import StateAxis
from runtime_edge.policy.surroundings import PERIOD_S, Surroundings, measured
from runtime_edge.updates import table_updater


@pytest.fixture
def sysfs(tmp_path):
    zone = tmp_path / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("61250\n")
    return tmp_path


def battery(monkeypatch, answer):
    monkeypatch.setattr(psutil, "sensors_battery", answer, raising=False)


def test_temperature_and_charge_are_read_in_the_units_of_a_table(monkeypatch, sysfs):
    battery(monkeypatch, lambda: SimpleNamespace(percent=40.0))
    assert measured(sysfs) == {"temperature_c": 61.25, "battery": 0.4}


def test_what_is_not_there_is_left_out(monkeypatch, tmp_path):
    battery(monkeypatch, lambda: None)
    assert measured(tmp_path) == {}


def test_a_broken_driver_is_no_battery(monkeypatch, tmp_path):
    def broken():
        raise OSError("no such device")

    battery(monkeypatch, broken)
    assert measured(tmp_path) == {}


def test_sensors_are_read_once_in_a_period_and_keep_their_last_value():
    readings = iter([{"battery": 0.5, "temperature_c": 50.0}, {"battery": 0.4}])
    seconds = [100.0]
    surroundings = Surroundings(lambda: next(readings), lambda: seconds[0])
    assert surroundings.now() == {"battery": 0.5, "temperature_c": 50.0}
    seconds[0] += PERIOD_S / 2
    assert surroundings.now() == {"battery": 0.5, "temperature_c": 50.0}
    seconds[0] += PERIOD_S
    assert surroundings.now() == {"battery": 0.4, "temperature_c": 50.0}


def test_a_table_by_charge_is_followed_where_there_is_a_battery_and_refused_elsewhere(monkeypatch, small_bundle):
    base = small_bundle.table("rpi4")
    first, last = (tuple(float(i == best) for i in range(len(base.actions))) for best in (0, len(base.actions) - 1))
    table = replace(
        base,
        state=(StateAxis(name="battery", edges=(0.2,)),),
        q=(last, first),
        probe_rate=0.0,
        dwell=1,
    )
    config = DeviceConfig(device="pi-1")
    monkeypatch.setattr(table_updater, "measured", dict)
    with pytest.raises(TableError, match="battery, which is not measured here"):
        table_updater.make_splitter(small_bundle, table, config)

    monkeypatch.setattr(table_updater, "measured", lambda: {"battery": 1.0})
    splitter = table_updater.make_splitter(small_bundle, table, config)
    cuts = [splitter.choose(0.5, 0.1, 2.0, 50.0, extra={"battery": charge}).cut for charge in (0.9, 0.1)]
    assert cuts == [base.actions[0], base.actions[-1]]
