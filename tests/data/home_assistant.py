"""What Home Assistant takes as a device at an MQTT broker, after its documentation of MQTT discovery for devices."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

TOPIC = re.compile(r"homeassistant/device/(?:[a-zA-Z0-9_-]+/)?[a-zA-Z0-9_-]+/config")
_Text = Annotated[str, Meta(min_length=1)]
_Topic = Annotated[str, Meta(pattern=r"^[^+#\x00]+$", max_length=65_535)]


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Device(_Strict):
    identifiers: Annotated[list[_Text], Meta(min_length=1)]
    name: _Text | None = None
    manufacturer: _Text | None = None
    model: _Text | None = None
    sw_version: _Text | None = None


class Origin(_Strict):
    name: _Text
    sw_version: _Text | None = None


class Availability(_Strict):
    topic: _Topic
    payload_available: str = "online"
    payload_not_available: str = "offline"


class BinarySensor(_Strict, tag_field="platform", tag="binary_sensor"):
    unique_id: _Text
    state_topic: _Topic
    name: str | None = None
    device_class: Literal["sound", "motion", "occupancy"] | None = None
    value_template: str | None = None
    json_attributes_topic: _Topic | None = None
    payload_on: str = "ON"
    payload_off: str = "OFF"


class Sensor(_Strict, tag_field="platform", tag="sensor"):
    unique_id: _Text
    state_topic: _Topic
    name: str | None = None
    device_class: Literal["temperature"] | None = None
    unit_of_measurement: Literal["°C"] | None = None
    entity_category: Literal["diagnostic"] | None = None
    value_template: str | None = None


class Discovery(_Strict):
    device: Device
    origin: Origin
    components: dict[str, BinarySensor | Sensor]
    availability: list[Availability]
    availability_mode: Literal["all", "any", "latest"] = "latest"


def checked(topic: str, payload: str | bytes) -> Discovery:
    """What Home Assistant makes of a message; an error where it would refuse it."""
    assert TOPIC.fullmatch(topic), topic
    found = msgspec.json.decode(payload, type=Discovery)
    ids = [component.unique_id for component in found.components.values()]
    assert len(set(ids)) == len(ids), "two entities of one id"
    for component in found.components.values():
        assert component.device_class != "temperature" or component.unit_of_measurement
    return found


def value(template: str | None, payload: str | bytes) -> Any:
    """What a template as ours makes of a state."""
    name = re.fullmatch(r"\{\{ value_json\.(\w+) \}\}", template or "")
    assert name, template
    return json.loads(payload)[name[1]]
