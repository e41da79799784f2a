"""All devices as seen from the server: each one's last report, what it heard, and the fleet over the last day.

Reports are unverified: each value must have the right type, texts are shortened and made printable, and everything that
is kept is bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from runtime_edge.base.text import printable
from runtime_edge.errors import FormatError
from runtime_edge.formats import subjects
from runtime_edge.formats.results import (
    MAX_RESULT_BYTES,
    LabelEvent,
    ResultEvent,
    decode_label_event,
    decode_result_event,
)
from runtime_edge.formats.strict import decode
from runtime_edge.formats.update_events import UpdateEvent, decode_update_event
from runtime_server.telemetry.device_view import DeviceView, Heard, device_view
from runtime_server.telemetry.fleet_history import FleetHistory

ALIVE_S = 150.0
"""A device that has been silent for this long counts as gone: devices report at least every minute."""
MAX_DEVICES = 2000
"""Beyond this number, the least recently active device is forgotten."""
_MAX_EVENTS = 300
_MAX_ON = 64
"""How many labels can be on at one device."""
_SETTLE_S = 10.0
"""A report may have been made up to this long before an event that arrived earlier."""


class FleetEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that a device reported when it happened."""

    number: int
    """Counted from 1 since the server started."""
    at: float
    """When it arrived, seconds since the epoch."""
    device: str
    kind: str
    """`on` or `off` for a label, or the kind of an event about updates."""
    label: str = ""
    score: float | None = None
    since: float | None = None
    """By the device's clock, like `time`."""
    time: float | None = None
    head_generation: int | None = None
    generation: int | None = None
    corrected: str = ""
    """The label with which somebody corrected it."""
    text: str = ""
    """For an update that was not taken, the reason."""


class Fleet:
    """Knows every device that has reported anything; `clock` gives seconds since the epoch."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.history = FleetHistory()
        self.devices: dict[str, DeviceView] = {}
        """By name; the device heard from last comes last."""
        self.events: deque[FleetEvent] = deque(maxlen=_MAX_EVENTS)
        """Newest last."""
        self.revision = 0
        """Grows with each change; each device keeps the revision of its latest change."""
        self.unreadable = 0
        """Reports and events that could not be read."""
        self._number = 0
        self._changed_at: dict[tuple[str, str], float] = {}
        """When labels last went on or off; only the last seconds are kept."""

    def is_alive(self, device: DeviceView) -> bool:
        """Whether it reported recently."""
        return self.clock() - device.seen < ALIVE_S

    def report(self, name: str, report: Mapping[str, Any], age_s: float = 0.0) -> None:
        """Process a device's report, which is `age_s` old."""
        if not subjects.is_device(name):
            self.unreadable += 1
            return
        now, before = self.clock(), self.devices.get(name)
        view = device_view(name, report, before, now - age_s)
        self.history.add(view, before, now - age_s)
        on = dict(list(view.on.items())[:_MAX_ON])
        if before is not None and before.boot == view.boot:
            for label in before.on.keys() ^ on.keys():
                if self._changed_at.get((name, label), 0.0) > now - _SETTLE_S:  # the report may be older than the event
                    on.pop(label, None)
                    on |= {label: before.on[label]} if label in before.on else {}
        self._keep(msgspec.structs.replace(view, on=on))

    def event(self, name: str, data: bytes) -> None:
        """Process a device's message about what it hears or about its updates."""
        try:
            if not subjects.is_device(name):
                raise FormatError("no device has this name")
            event = _decoded(data)
        except FormatError:
            self.unreadable += 1
            return
        now = self.clock()
        view = self.devices.get(name) or DeviceView(name=name, seen=now)
        if isinstance(event, ResultEvent):
            best = {printable(label, 80): score for label, score in list(event.labels.items())[:5]}
            heard = Heard(event.time, best, [printable(label, 80) for label in event.detected[:5]], event.latency_ms)
            self._keep(msgspec.structs.replace(view, seen=now, heard=heard, head_generation=event.head_generation))
            return
        told = self._told(name, event, now)
        self.events.append(told)
        if isinstance(event, LabelEvent):
            view = self._switched(view, told, now)
        self._keep(msgspec.structs.replace(view, seen=now))

    def changed(self, revision: int) -> list[DeviceView]:
        """The devices that have changed since a revision, the most recent first."""
        found = []
        for view in reversed(self.devices.values()):
            if view.revision <= revision:
                break
            found.append(view)
        return found

    def later(self, number: int) -> list[FleetEvent]:
        """The events after event `number`, the oldest first."""
        return [event for event in self.events if event.number > number]

    def _switched(self, view: DeviceView, event: FleetEvent, now: float) -> DeviceView:
        on = {label: since for label, since in view.on.items() if label != event.label}
        if event.kind == "on" and len(on) < _MAX_ON:
            on[event.label] = event.since or now
        recent = {key: at for key, at in self._changed_at.items() if at > now - _SETTLE_S}
        self._changed_at = {**dict(list(recent.items())[-_MAX_EVENTS:]), (event.device, event.label): now}
        scores = {label: score for label, score in view.scores.items() if label in on}
        if event.kind == "on" and event.score is not None:
            scores[event.label] = event.score
        return msgspec.structs.replace(view, on=on, scores=scores, head_generation=event.head_generation)

    def _told(self, name: str, event: LabelEvent | UpdateEvent, now: float) -> FleetEvent:
        self._number += 1
        if isinstance(event, LabelEvent):
            return FleetEvent(
                number=self._number, at=now, device=name, kind=event.event, label=printable(event.label, 80),
                score=event.score, since=event.since, time=event.time, head_generation=event.head_generation,
            )  # fmt: skip
        text = printable(event.reason or "", 200)
        return FleetEvent(
            number=self._number, at=now, device=name, kind=event.event, generation=event.generation, text=text
        )

    def _keep(self, view: DeviceView) -> None:
        self.revision += 1
        self.devices.pop(view.name, None)
        self.devices[view.name] = msgspec.structs.replace(view, revision=self.revision)
        if len(self.devices) > MAX_DEVICES:
            del self.devices[min(self.devices, key=lambda name: self.devices[name].seen)]


class _AnyEvent(msgspec.Struct):
    event: str


_READERS: dict[str, Callable[[bytes], ResultEvent | LabelEvent]] = {
    "result": decode_result_event,
    "on": decode_label_event,
    "off": decode_label_event,
}


def _decoded(data: bytes) -> ResultEvent | LabelEvent | UpdateEvent:
    """Decode anything that a device publishes on its subject of events. Raises FormatError."""
    kind = decode(data, _AnyEvent, "event", MAX_RESULT_BYTES).event
    return _READERS.get(kind, decode_update_event)(data)
