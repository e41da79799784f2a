"""The page's data as JSON: each view is made on request, at most once a second.

Everything here runs on the server's event loop. A separate thread serves the page and only passes on bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from runtime_edge.base import prometheus
from runtime_edge.base.text import printable
from runtime_edge.formats.manifest import BundleInfo
from runtime_edge.formats.records.head import Head
from runtime_server.telemetry.device_view import DeviceView
from runtime_server.telemetry.fleet import ALIVE_S, Fleet, FleetEvent
from runtime_server.telemetry.fleet_history import BANDS_MBPS
from runtime_server.telemetry.fleet_metrics import fleet_families
from runtime_server.telemetry.predicted_energy import predicted_energy
from runtime_server.web.judgement import attempt_in_words, release_in_words, score_in_words
from runtime_server.web.sounds import Sounds

LEAST_S = 1.0
"""Minimum time before a view is made again."""
METRICS = "metrics"
"""The view for Prometheus, with all devices."""
DEVICES_S = 0.5
"""Time between two updates of devices to listeners: devices that publish every result change twice a second."""
_MAX_LOSSES, _MAX_LABELS = 300, 200
_HIDDEN = ("counted",)
"""Fields of a device that only the server needs."""

Status = Mapping[str, Any]


class PageData:
    """Makes the views of one server.

    Args:
        fleet: its devices.
        status: returns the server's status (`ServerStatus.status_of_all`).
        heads: returns the heads that devices have, by recipient.
        sounds: the sounds behind events.
        clock: seconds, monotonic.
        bundle: what devices run; its costs predict their energy.
    """

    def __init__(
        self,
        fleet: Fleet,
        status: Callable[[], Awaitable[Status]],
        heads: Callable[[], Awaitable[Mapping[str, Head]]],
        sounds: Sounds,
        clock: Callable[[], float] = time.monotonic,
        bundle: BundleInfo | None = None,
    ) -> None:
        self._bundle = bundle
        self._fleet, self._status, self._heads, self._clock = fleet, status, heads, clock
        self._sounds = sounds
        self._made: dict[str, tuple[float, bytes]] = {}
        self._making = asyncio.Lock()
        self._views: Final[dict[str, Callable[[], Awaitable[object]]]] = {
            "server": self._server,
            "devices": self._devices,
            "events": self._events,
            "corrections": self._corrections,
            "history": self._history,
            "training": self._training,
            "releases": self._releases,
            "heads": self._head_list,
            METRICS: self._metrics,
        }
        self._last_status: tuple[float, Status] | None = None
        self._devices_told = float("-inf")

    async def get(self, view: str) -> bytes:
        """A view as JSON, or METRICS in Prometheus's format, at most a second old.

        Raises KeyError for an unknown view, and LinkError.
        """
        make = self._views[view]
        async with self._making:
            made = self._made.get(view)
            if made is None or self._clock() - made[0] >= LEAST_S:
                found = await make()
                body = found if isinstance(found, bytes) else msgspec.json.encode(found)
                self._made[view] = made = self._clock(), body
            return made[1]

    async def changes(self, revision: int, number: int) -> tuple[bytes, int, int]:
        """Changes since a revision of the fleet and an event's number, and the current values of both.

        Empty if nothing has changed; devices that were sent only just before are left for a later call.
        """
        fleet, now = self._fleet, self._clock()
        is_due = now - self._devices_told >= DEVICES_S
        events, devices = fleet.later(number), fleet.changed(revision) if is_due else []
        number, revision = events[-1].number if events else number, fleet.revision if is_due else revision
        if not events and not devices:
            return b"", revision, number
        if devices:
            self._devices_told = now
        told = {
            "now": fleet.clock(),
            "devices": [self._device(view) for view in devices],
            "events": [self._event(event) for event in events],
        }
        return msgspec.json.encode(told), revision, number

    async def picture(self, number: int) -> bytes:
        """See `Sounds.picture`."""
        return msgspec.json.encode(await self._sounds.picture(number))

    async def audio(self, number: int) -> bytes:
        """See `Sounds.audio`."""
        return await self._sounds.audio(number)

    async def correct(self, number: int, label: str | None) -> bytes:
        """See `Sounds.correct`."""
        return self._kept(await self._sounds.correct(number, label))

    async def forget(self, device: str, heard: str, since: float) -> bytes:
        """See `Sounds.forget`."""
        return self._kept(await self._sounds.forget(device, heard, since))

    def _kept(self, kept: Mapping[str, Any]) -> bytes:
        for view in ("events", "corrections"):  # so that the next request shows it
            self._made.pop(view, None)
        return msgspec.json.encode(kept)

    @property
    def place(self) -> tuple[int, int]:
        """The fleet's revision and the number of its last event."""
        return self._fleet.revision, self._fleet.events[-1].number if self._fleet.events else 0

    def _device(self, view: DeviceView, arrived: int | None = None) -> dict[str, Any]:
        told = {name: value for name, value in msgspec.structs.asdict(view).items() if name not in _HIDDEN}
        told["alive"] = self._fleet.is_alive(view)
        told["energy_mj"] = None if self._bundle is None else predicted_energy(view, self._bundle)
        return told if arrived is None else told | {"arrived": arrived}

    async def _told(self) -> Status:
        if self._last_status is None or self._clock() - self._last_status[0] >= LEAST_S:
            self._last_status = self._clock(), await self._status()
        return self._last_status[1]

    async def _server(self) -> object:
        told, devices = await self._told(), self._fleet.devices.values()
        return {
            "now": self._fleet.clock(),
            "encoder": told["encoder"],
            "generation": told["generation"],
            "uptime_s": told["uptime_s"],
            "windows": sum(told["windows"].values()),
            "counters": told["counters"],
            "training_steps": told["training_steps"],
            "troubles": [printable(trouble) for trouble in told.get("troubles", [])],
            "devices": len(devices),
            "alive": sum(map(self._fleet.is_alive, devices)),
            "unreadable": self._fleet.unreadable,
        }

    async def _devices(self) -> object:
        windows = (await self._told())["windows"]
        views = sorted(self._fleet.devices.values(), key=lambda view: view.name)
        listed = [self._device(view, windows.get(view.name, 0)) for view in views]
        return {"now": self._fleet.clock(), "alive_s": ALIVE_S, "devices": listed}

    def _event(self, event: FleetEvent) -> FleetEvent:
        return msgspec.structs.replace(event, corrected=self._sounds.label_of(event))

    async def _events(self) -> object:
        await self._sounds.look()
        return {"now": self._fleet.clock(), "events": [self._event(event) for event in reversed(self._fleet.events)]}

    async def _corrections(self) -> object:
        await self._sounds.look()
        return {"corrections": self._sounds.corrections}

    async def _history(self) -> object:
        return {"now": self._fleet.clock(), "bands_mbps": BANDS_MBPS, "minutes": self._fleet.history.minutes}

    async def _training(self) -> object:
        told = await self._told()
        losses = told["losses"]
        return {
            "steps": told["training_steps"],
            "losses": losses[:: -(-len(losses) // _MAX_LOSSES) or 1],
            "energy": told.get("energy"),
            "attempts": [
                {name: outcome.get(name) for name in ("generation", "released", "steps", "seconds", "before", "after")}
                | {"words": attempt_in_words(outcome)}
                for outcome in reversed(told["releases"])
            ],
        }

    async def _releases(self) -> object:
        rollout = (await self._told())["rollout"]
        listed = [{**entry, "words": release_in_words(entry)} for entry in rollout["releases"]]
        return {"releases": listed, "held": rollout["held"], "paced": rollout["paced"]}

    async def _metrics(self) -> bytes:
        views = sorted(self._fleet.devices.values(), key=lambda view: view.name)
        return prometheus.render(fleet_families(views, self._fleet.is_alive))

    async def _head_list(self) -> object:
        heads, told = await self._heads(), await self._told()
        judged = [(one, score) for one in reversed(told["releases"]) for score in one["heads"]["judged"]]
        return {
            "heads": [dict(_head(name, head)) for name, head in sorted(heads.items())],
            "generations": [
                {"generation": outcome["generation"], "released": outcome["released"], **score}
                | {"words": score_in_words(outcome, score)}
                for outcome, score in judged
            ],
        }


def _head(name: str, head: Head) -> Iterator[tuple[str, Any]]:
    yield "for", name
    yield "encoder", head.encoder
    yield "generations", head.generations
    yield "labels", head.labels[:_MAX_LABELS]
    yield "label_count", len(head.labels)
    yield "created_by", head.created_by
    yield "validation", head.validation
