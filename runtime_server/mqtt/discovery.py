"""A device's topics at a user's MQTT broker: retained ones with its state, and one by which Home Assistant finds it.

`streamsplit/status` and `streamsplit/pi-1/status` are `online` or `offline`, `streamsplit/pi-1/label/rain` is JSON with
`state` ON or OFF, and `homeassistant/device/streamsplit-pi-1/config` describes all of these (docs/events.md).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from runtime_edge.errors import installed_version
from runtime_server.telemetry.device_view import DeviceView
from runtime_server.telemetry.fleet import FleetEvent

ONLINE, OFFLINE = "online", "offline"
MAX_LABELS = 64
"""Per device; a head may have thousands of labels, most of which are never heard."""
_ID = 40
_DEVICE_VALUES = ("generation", "head_generation", "cut", "temperature_c", "throttled", "battery")


@dataclass(frozen=True)
class Topics:
    """The names of all topics."""

    base: str = "streamsplit"
    discovery: str = "homeassistant"

    @property
    def status(self) -> str:
        """The topic of the bridge's own status; the last will of its connection sets it to offline."""
        return f"{self.base}/status"

    def of(self, device: str, *parts: str) -> str:
        """A topic of one device."""
        return "/".join([self.base, device, *parts])

    def config(self, device: str) -> str:
        """The topic where Home Assistant looks for a device."""
        return f"{self.discovery}/device/{self.base}-{device}/config"


@dataclass
class KnownLabels:
    """The labels that one device has topics for: those of its head, if there are few, and those heard since."""

    heard: dict[str, None] = field(default_factory=dict)
    seen: dict[str, tuple[float, int | None]] = field(default_factory=dict)
    """For labels that have been on: the best score, and the head's generation at that time."""

    def add(self, labels: Iterable[str]) -> None:
        """Add as many labels as there is room for; a label that was added stays."""
        for label in labels:
            if len(self.heard) < MAX_LABELS:
                self.heard.setdefault(label)

    def note(self, label: str, score: float, generation: int | None) -> None:
        """Note that a label went on or off, unless there is no room for it."""
        self.add([label])
        if label in self.heard:
            self.seen[label] = score, generation


def label_id(label: str) -> str:
    """The label as part of a topic or an id; no two labels get the same one."""
    plain = re.sub(r"[^a-zA-Z0-9_]+", "-", label).strip("-")[:_ID]
    if plain == label:
        return plain
    return "-".join(filter(None, [plain, hashlib.sha256(label.encode()).hexdigest()[:8]]))


def retained(view: DeviceView, alive: bool, known: KnownLabels, topics: Topics) -> dict[str, str]:
    """Each retained topic of a device with its value."""
    found = {topics.of(view.name, "status"): ONLINE if alive else OFFLINE}
    found[topics.of(view.name, "state")] = _json({name: getattr(view, name) for name in _DEVICE_VALUES})
    for label in known.heard:
        found[topics.of(view.name, "label", label_id(label))] = _json(_state(view, label, known))
    found[topics.config(view.name)] = _json(discovery(view, known, topics))
    return found


def discovery(view: DeviceView, known: KnownLabels, topics: Topics) -> dict[str, Any]:
    """Home Assistant's description of a device and its entities, one for each label."""
    name, version = view.name, installed_version()
    device = {"identifiers": [f"{topics.base}-{name}"], "name": name, "manufacturer": "StreamSplit"}
    components = {f"label_{label_id(label)}": _label(name, label, topics) for label in known.heard}
    components["temperature"] = _sensor(
        name, "temperature_c", topics, name="Temperature", device_class="temperature", unit_of_measurement="°C"
    )
    components["generation"] = _sensor(name, "generation", topics, name="Generation")
    return {
        "device": device | _given(model=view.target, sw_version=view.software),
        "origin": {"name": "StreamSplit"} | _given(sw_version=version),
        "components": components,
        "availability": [{"topic": topics.status}, {"topic": topics.of(name, "status")}],
        "availability_mode": "all",
    }


def device_topics(device: str, known: KnownLabels, topics: Topics) -> list[str]:
    """The topics on which something is retained for a device."""
    labels = (topics.of(device, "label", label_id(label)) for label in known.heard)
    return [topics.of(device, "status"), topics.of(device, "state"), *labels, topics.config(device)]


def device_event(event: FleetEvent) -> str:
    """The unretained message for something that happened at a device."""
    names = ("kind", "device", "label", "score", "since", "time", "head_generation", "generation", "text")
    values = {name: getattr(event, name) for name in names}
    return _json({name: value for name, value in values.items() if value not in (None, "")})


def _label(device: str, label: str, topics: Topics) -> dict[str, Any]:
    place = topics.of(device, "label", label_id(label))
    return {
        "platform": "binary_sensor",
        "name": label,
        "unique_id": f"{topics.base}-{device}-label-{label_id(label)}",
        "device_class": "sound",
        "state_topic": place,
        "value_template": "{{ value_json.state }}",
        "json_attributes_topic": place,
    }


def _sensor(device: str, value: str, topics: Topics, **more: str) -> dict[str, Any]:
    return {
        "platform": "sensor",
        "unique_id": f"{topics.base}-{device}-{value}",
        "entity_category": "diagnostic",
        "state_topic": topics.of(device, "state"),
        "value_template": f"{{{{ value_json.{value} }}}}",
        **more,
    }


def _state(view: DeviceView, label: str, known: KnownLabels) -> dict[str, Any]:
    since = view.on.get(label)
    score, generation = known.seen.get(label, (None, None))
    return {
        "state": "OFF" if since is None else "ON",
        "label": label,
        "score": score,
        "since": None if since is None else _moment(since),
        "head_generation": generation,
    }


def _moment(at: float) -> str | None:
    try:
        return dt.datetime.fromtimestamp(at, dt.timezone.utc).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return None


def _given(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
