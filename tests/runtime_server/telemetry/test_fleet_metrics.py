"""Metrics of all devices under their names, and what Grafana's dashboard asks for."""

import json
import re
from pathlib import Path

import promlint
import pytest
from prometheus_client.parser import text_string_to_metric_families
from reports import REPORT, Clock

from runtime_edge.base.prometheus import render
from runtime_server.telemetry.fleet import ALIVE_S, Fleet
from runtime_server.telemetry.fleet_metrics import fleet_families

DASHBOARD = Path(__file__).resolve().parents[3] / "docs" / "grafana-dashboard.json"


@pytest.fixture
def fleet():
    fleet = Fleet(Clock())
    fleet.report("pi-1", REPORT | {"labels_on": {"dog": 999_990.0}})
    fleet.report("pi-2", REPORT | {"device": "pi-2", "temperature_c": None, "errors": {}})
    return fleet


def page(fleet):
    return render(fleet_families(sorted(fleet.devices.values(), key=lambda view: view.name), fleet.is_alive))


def values(fleet):
    """By name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(fleet).decode())
        for sample in family.samples
    }


def test_what_a_device_says_is_there_under_its_name(fleet):
    found = values(fleet)
    assert found["ssc_device_up", ("device", "pi-1")] == 1
    assert found["ssc_device_generation", ("device", "pi-1")] == 3
    assert found["ssc_device_windows_total", ("device", "pi-1"), ("outcome", "captured")] == 20
    assert found["ssc_device_cut_share", ("cut", "stem"), ("device", "pi-1")] == 0.75
    assert found["ssc_device_latency_seconds", ("device", "pi-1"), ("quantile", "0.95")] == pytest.approx(0.04)
    assert found["ssc_device_bytes_per_second", ("device", "pi-1"), ("kind", "up")] == pytest.approx(100 / 3600)
    assert found["ssc_device_month_bytes", ("device", "pi-1"), ("kind", "down")] == 5000
    assert found["ssc_device_memory_bytes", ("device", "pi-1")] == 101.5e6
    assert found["ssc_device_throttled", ("device", "pi-1")] == 1
    assert found["ssc_device_label_on", ("device", "pi-1"), ("label", "dog")] == 1


def test_what_it_does_not_say_is_left_out_and_who_is_gone_is_down(fleet):
    assert ("ssc_device_temperature_celsius", ("device", "pi-2")) not in values(fleet)
    fleet.clock.now += ALIVE_S + 1
    assert values(fleet)["ssc_device_up", ("device", "pi-1")] == 0


def test_hostile_names_stay_inside_their_quotes():
    fleet = Fleet(Clock())
    fleet.report("pi-1", REPORT | {"cuts": {'a"} 1\nevil{x="': 4}})
    assert not any(name == "evil" for name, *_ in values(fleet))


@promlint.needs_promtool
def test_the_page_follows_prometheus_rules(fleet):
    assert promlint.problems(page(fleet)) == []


def test_the_dashboard_asks_for_what_there_is(fleet):
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"ssc_\w+", target["expr"])
    }
    assert asked
    assert asked <= {name for name, *_ in values(fleet)}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "device"}
