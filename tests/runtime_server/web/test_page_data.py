"""The views, in a loop of their own: what is in them, and how often they are made."""

from __future__ import annotations

import asyncio
import json

import pytest
from reports import REPORT, Clock
from showroom import CODECS, FRONT_END, head, sent, status

from runtime_server.labels.corrections import Corrections
from runtime_server.telemetry.fleet import ALIVE_S, Fleet
from runtime_server.web.page_app import VIEWS
from runtime_server.web.page_data import DEVICES_S, LEAST_S, PageData
from runtime_server.web.sounds import Sounds


class Made:
    """Views of a fleet, and how often the server was asked."""

    def __init__(self, state, bundle=None):
        self.clock, self.asked = Clock(), 0
        self.fleet = Fleet(self.clock)
        sounds = Sounds(
            lambda: self.fleet.events, self._sent, self._sent, FRONT_END, lambda: CODECS, Corrections(state), self.clock
        )
        self.data = PageData(self.fleet, self._status, self._heads, sounds, self.clock, bundle)

    async def _sent(self, moment):
        return sent(moment.device, "rain", moment)

    async def _status(self):
        self.asked += 1
        return status(3)

    async def _heads(self):
        return {"rpi4": head()}

    def get(self, view):
        return json.loads(asyncio.run(self.data.get(view)))

    def changes(self, *place):
        body, *place = asyncio.run(self.data.changes(*place))
        return json.loads(body) if body else None, tuple(place)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def test_the_energy_of_devices_is_predicted_by_the_costs_of_their_bundle(tmp_path, small_bundle):
    info, made = small_bundle.manifest.info, Made(tmp_path, small_bundle.manifest.info)
    made.fleet.report("pi-1", REPORT | {"cuts": {"local": 3}})
    made.fleet.report("pi-2", REPORT | {"cuts": {"local": 3}, "target": "a board that it was not compiled for"})
    shown = made.get("devices")["devices"]
    assert shown[0]["energy_mj"]["blocks"] == pytest.approx(sum(info.targets["rpi4"].block_mj), abs=1e-3)
    assert shown[1]["energy_mj"] is None


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_can_be_had_of_an_empty_server_and_of_a_full_one(made, view):
    assert made.get(view)
    made.clock.now += LEAST_S
    made.fleet.report("pi-1", REPORT)
    assert made.get(view)


def test_another_view_is_none(made):
    with pytest.raises(KeyError):
        made.get("passwords")


def test_the_server_is_asked_at_most_once_a_second_however_many_look(made):
    for _ in range(10):
        for view in VIEWS:
            made.get(view)
    assert made.asked == 1
    made.clock.now += LEAST_S
    made.get("server")
    assert made.asked == 2


def test_devices_are_listed_by_name_with_what_has_arrived_of_them(made):
    for name in ("pi-002", "pi-001"):
        made.fleet.report(name, REPORT)
    first, second = made.get("devices")["devices"]
    assert (first["name"], second["name"], first["arrived"]) == ("pi-001", "pi-002", 11_001)
    assert (first["alive"], first["cuts"], first["hour"]["up"]) == (True, {"stem": 0.75, "local": 0.25}, 100)
    assert "counted" not in first
    made.clock.now += ALIVE_S
    assert [one["alive"] for one in made.get("devices")["devices"]] == [False, False]
    assert made.get("server")["alive"] == 0


FAILED = b'{"event":"update_failed","version":2,"device":"pi-1","reason":"the disk is full"}'


def test_changes_are_told_once(made):
    made.fleet.report("pi-1", REPORT)
    told, place = made.changes(0, 0)
    assert [device["name"] for device in told["devices"]] == ["pi-1"]
    assert made.changes(*place) == (None, place)
    made.clock.now += DEVICES_S
    made.fleet.event("pi-1", FAILED)
    told, place = made.changes(*place)
    assert [(event["kind"], event["text"]) for event in told["events"]] == [("update_failed", "the disk is full")]
    assert [device["name"] for device in told["devices"]] == ["pi-1"]
    assert place == made.data.place


def test_devices_that_change_all_the_time_are_told_of_twice_a_second_and_events_at_once(made):
    place = 0, 0
    looks = []
    for _ in range(16):
        made.clock.now += 0.125
        made.fleet.event("pi-1", FAILED)
        told, place = made.changes(*place)
        looks.append((len(told["devices"]), len(told["events"])))
    assert looks == [(1, 1), (0, 1), (0, 1), (0, 1)] * 4


def test_training_and_releases_come_with_sentences(made):
    training = made.get("training")
    assert len(training["losses"]) == 200
    assert training["attempts"][0]["words"].startswith("After training step 900, generation 5 was not released")
    assert made.get("releases")["releases"][0]["words"].startswith("Generation 4 is on trial")


def test_heads_say_how_good_they_are(made):
    (found,) = made.get("heads")["heads"]
    assert (found["for"], found["label_count"], found["generations"]) == ("rpi4", 5, [3, 4])
    assert found["validation"]["accuracy"] == 0.914


def test_heads_say_how_they_fare_over_generations_the_latest_first(made):
    last, first = made.get("heads")["generations"]
    assert (last["generation"], last["released"], last["after"], last["before"]) == (5, False, 109, 114)
    assert first["words"] == (
        "Generation 4 (released): head rpi4 labels 114 of 120 held-out clips correctly (95.0%), 112 with the best "
        "generation before."
    )
