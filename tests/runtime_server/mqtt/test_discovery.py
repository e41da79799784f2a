"""What stands at a user's MQTT broker: valid for Home Assistant, whatever devices and labels are called."""

from __future__ import annotations

import json
import re

import msgspec
from home_assistant import checked, value
from hypothesis import given
from hypothesis import strategies as st

from runtime_server.mqtt.discovery import (
    MAX_LABELS,
    KnownLabels,
    Topics,
    device_event,
    device_topics,
    discovery,
    label_id,
    retained,
)
from runtime_server.telemetry.device_view import DeviceView
from runtime_server.telemetry.fleet import FleetEvent

VIEW = DeviceView(name="pi-1", seen=1000.0, target="rpi4", software="0.2.0", generation=3, temperature_c=51.5)
TOPICS = Topics()
names = st.text(min_size=1, max_size=100)


def known(*labels):
    found = KnownLabels()
    found.add(labels)
    return found


@given(names)
def test_any_label_makes_a_part_of_a_topic(label):
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,60}", label_id(label))


@given(st.sets(names, max_size=20))
def test_no_two_labels_share_an_id(labels):
    assert len({label_id(label) for label in labels}) == len(labels)


def test_a_plain_label_is_its_own_id():
    assert (label_id("dog_bark"), label_id("dog bark")[:9], label_id("+")[0]) == ("dog_bark", "dog-bark-", "a")


@given(st.sets(names, max_size=10), st.booleans())
def test_home_assistant_takes_it_whatever_labels_are_called(labels, alive):
    stands = retained(VIEW, alive, known(*labels), TOPICS)
    config = TOPICS.config("pi-1")
    found = checked(config, stands[config])
    assert {one.name for one in found.components.values()} >= labels
    assert found.availability_mode == "all"
    assert [one.topic for one in found.availability] == ["streamsplit/status", "streamsplit/pi-1/status"]
    assert stands["streamsplit/pi-1/status"] == ("online" if alive else "offline")
    for component in found.components.values():
        value(component.value_template, stands[component.state_topic])


def test_a_label_is_on_since_it_was_first_detected_and_off_otherwise():
    labels = known("rain", "dog")
    labels.seen["rain"] = 0.93, 2
    stands = retained(msgspec.structs.replace(VIEW, on={"rain": 1_700_000_000.0}), True, labels, TOPICS)
    assert json.loads(stands["streamsplit/pi-1/label/rain"]) == {
        "state": "ON", "label": "rain", "score": 0.93, "since": "2023-11-14T22:13:20+00:00", "head_generation": 2,
    }  # fmt: skip
    assert json.loads(stands["streamsplit/pi-1/label/dog"])["state"] == "OFF"


def test_a_time_that_is_none_does_no_harm():
    stands = retained(msgspec.structs.replace(VIEW, on={"rain": 1e15}), True, known("rain"), TOPICS)
    assert json.loads(stands["streamsplit/pi-1/label/rain"])["since"] is None


def test_of_very_many_labels_some_have_topics():
    labels = known(*(f"label {number}" for number in range(1000)))
    assert len(discovery(VIEW, labels, TOPICS)["components"]) == MAX_LABELS + 2


def test_nothing_is_kept_of_labels_beyond_those():
    labels = KnownLabels()
    for number in range(1000):
        labels.note(f"label {number}", 0.5, 2)
    labels.note("label 0", 0.75, 3)
    assert len(labels.seen) == MAX_LABELS
    assert labels.seen["label 0"] == (0.75, 3)


@given(st.sets(names, max_size=5))
def test_the_topics_of_a_device_are_where_something_of_it_stands(labels):
    assert set(device_topics(VIEW.name, known(*labels), TOPICS)) == set(retained(VIEW, True, known(*labels), TOPICS))


def test_an_event_says_of_which_head_it_is():
    event = FleetEvent(
        number=1, at=5.0, device="pi-1", kind="on", label="rain", score=0.9, since=4.0, time=4.5, head_generation=2
    )
    assert json.loads(device_event(event)) == {
        "kind": "on", "device": "pi-1", "label": "rain", "score": 0.9, "since": 4.0, "time": 4.5, "head_generation": 2,
    }  # fmt: skip
