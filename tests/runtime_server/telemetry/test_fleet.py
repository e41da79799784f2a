"""What the server knows of its devices, however many there are and whatever they say."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import REPORT, Clock

from runtime_server.telemetry.device_view import DeviceView
from runtime_server.telemetry.fleet import ALIVE_S, MAX_DEVICES, Fleet


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fleet(clock):
    return Fleet(clock)


def label(event, name="rain", score=0.9, since=10.0, time=12.0):
    fields = {"event": event, "version": 2, "device": "pi-1", "label": name, "score": score, "since": since}
    return json.dumps(fields | {"time": time, "window": 7, "head_generation": 4}).encode()


def test_a_report_becomes_the_numbers_that_people_look_at(fleet):
    fleet.report("pi-1", REPORT)
    view = fleet.devices["pi-1"]
    assert (view.target, view.software, view.generation, view.cut) == ("rpi4", "0.2.0", 3, "stem")
    assert view.cuts == {"stem": 0.75, "local": 0.25}
    assert view.answers == {"server": 0.75, "device": 0.25}
    assert view.latency_ms == {"p50": 12.5, "p95": 40.0}
    assert (view.hour.up, view.month.down, view.budget) == (100, 5000, {"all": 1500.0})
    assert (view.mbps, view.battery, view.throttled, view.temperature_c) == (2.5, 0.8, True, 61.25)
    assert view.troubles == ["broker is away"]


def test_a_device_that_says_nothing_for_long_is_gone(fleet, clock):
    fleet.report("pi-1", REPORT)
    clock.now += ALIVE_S - 1
    assert fleet.is_alive(fleet.devices["pi-1"])
    clock.now += 2
    assert not fleet.is_alive(fleet.devices["pi-1"])
    fleet.event("pi-1", label("on"))
    assert fleet.is_alive(fleet.devices["pi-1"])


def test_an_old_report_does_not_make_a_device_alive(fleet):
    fleet.report("pi-1", REPORT, age_s=3600.0)
    assert not fleet.is_alive(fleet.devices["pi-1"])


def test_labels_go_on_and_off_and_are_listed(fleet):
    fleet.report("pi-1", REPORT)
    fleet.event("pi-1", label("on"))
    assert fleet.devices["pi-1"].on == {"rain": 10.0}
    assert fleet.devices["pi-1"].scores == {"rain": 0.9}
    fleet.event("pi-1", label("off"))
    assert fleet.devices["pi-1"].on == {}
    assert [(one.number, one.kind, one.label, one.head_generation) for one in fleet.later(0)] == [
        (1, "on", "rain", 4),
        (2, "off", "rain", 4),
    ]
    assert fleet.later(2) == []


def test_a_report_mends_what_an_event_that_was_lost_has_left(fleet, clock):
    fleet.report("pi-1", REPORT)
    fleet.event("pi-1", label("on"))
    fleet.report("pi-1", REPORT)
    assert fleet.devices["pi-1"].on == {"rain": 10.0}, "the report may have been made before"
    clock.now += 60.0
    fleet.report("pi-1", REPORT)
    assert fleet.devices["pi-1"].on == {}
    fleet.report("pi-1", REPORT | {"labels_on": {"dog": 999_000.0}})
    assert fleet.devices["pi-1"].on == {"dog": 999_000.0}


def test_of_a_device_that_has_started_again_nothing_is_on(fleet):
    fleet.report("pi-1", REPORT)
    fleet.event("pi-1", label("on"))
    fleet.report("pi-1", REPORT | {"boot": "b2"})
    assert fleet.devices["pi-1"].on == {}


def test_what_has_changed_is_told_the_latest_first(fleet):
    for name in ("a", "b", "c"):
        fleet.report(name, REPORT)
    seen = fleet.revision
    assert fleet.changed(seen) == []
    fleet.report("b", REPORT)
    fleet.event("a", label("on"))
    assert [view.name for view in fleet.changed(seen)] == ["a", "b"]
    assert len(fleet.changed(0)) == 3


def test_updates_and_results_are_told(fleet):
    fleet.event("pi-1", b'{"event":"update_failed","version":2,"device":"pi-1","reason":"the self-test is off"}')
    fleet.event("pi-1", json.dumps({
        "event": "result", "version": 2, "answer": "server", "device": "pi-1", "window": 1, "time": 5.0,
        "labels": {"rain": 0.7}, "detected": ["rain"], "head_generation": 2, "uncertainty": 0.5, "cut": "stem",
        "finished": "server", "generation": 1, "latency_ms": 5.0,
    }, separators=(",", ":")).encode())  # fmt: skip
    (event,) = fleet.events
    assert (event.kind, event.text) == ("update_failed", "the self-test is off")
    view = fleet.devices["pi-1"]
    assert view.heard is not None
    assert (view.heard.labels, view.heard.detected, view.head_generation) == ({"rain": 0.7}, ["rain"], 2)


def test_names_that_no_device_can_have_and_what_cannot_be_read_are_counted(fleet):
    fleet.report("<script>", REPORT)
    fleet.event("PI", label("on"))
    fleet.event("pi-1", b"\xff")
    fleet.event("pi-1", b'{"event":"on"}')
    assert (fleet.unreadable, fleet.devices, list(fleet.events)) == (4, {}, [])


def test_the_devices_that_are_kept_have_a_bound(fleet, clock):
    for number in range(MAX_DEVICES + 5):
        clock.now += 1
        fleet.report(f"pi-{number}", REPORT)
    assert len(fleet.devices) == MAX_DEVICES
    assert "pi-0" not in fleet.devices


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=100), inner, max_size=20),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*REPORT, "update_waits", "update_failures", "refused"]), json_values))
def test_whatever_a_device_says_becomes_a_view_of_bounded_size(report):
    fleet = Fleet(Clock())
    for told in (REPORT, report, report):
        fleet.report("pi-1", told)
    told = msgspec.json.encode(fleet.devices["pi-1"])
    assert msgspec.json.decode(told, type=DeviceView)
    assert len(told) < 32_000
    msgspec.json.encode(fleet.history.minutes)
