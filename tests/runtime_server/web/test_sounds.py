import asyncio

import pytest
from reports import Clock
from showroom import CODECS, FRONT_END, sent

from runtime_edge.errors import UsageError
from runtime_edge.formats.wire import decode_frame
from runtime_server.labels.corrections import Corrections
from runtime_server.telemetry.fleet import FleetEvent
from runtime_server.web.sounds import LONGEST_S, Sounds

BEGAN = 500.0


class Room:
    def __init__(self, state):
        self.clock, self.events, self.read = Clock(), [], []
        self.store = Corrections(state)
        self.sounds = Sounds(lambda: self.events, self._sent, FRONT_END, lambda: CODECS, self.store, self.clock)

    async def _sent(self, moment):
        self.read.append(moment)
        return sent(moment.device, "rain", moment)

    def told(self, kind, time, device="pi-0", since=BEGAN):
        number = len(self.events) + 1
        self.events.append(
            FleetEvent(number=number, at=self.clock.now, device=device, kind=kind, label="rain", since=since, time=time)
        )
        return number

    def do(self, work):
        return asyncio.run(work)


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


def test_a_label_that_is_still_on_has_what_has_come_so_far(room):
    number = room.told("on", BEGAN)
    assert room.do(room.sounds.picture(number))["seconds"] > LONGEST_S
    room.clock.now += 2
    off = room.told("off", BEGAN + 2)
    for one in (number, off):
        assert room.do(room.sounds.picture(one))["seconds"] == pytest.approx(3.0)
    assert room.read[-1].told_at == room.events[0].at, "the broker had it before it heard that it is over"


def test_a_picture_is_made_once_when_nothing_more_can_come(room):
    room.told("on", BEGAN)
    number = room.told("off", BEGAN + 2)
    for read in (1, 2, 3):
        for _ in range(3):  # several pages at once
            room.do(room.sounds.picture(number))
        assert len(room.read) == read
        room.clock.now += 3
    room.clock.now += LONGEST_S
    for _ in range(5):
        room.do(room.sounds.picture(number))
        room.clock.now += 60
    assert len(room.read) == 4


def test_what_is_corrected_are_the_windows_in_which_it_was_heard(room):
    room.told("on", BEGAN)
    number = room.told("off", BEGAN + 2)
    assert room.do(room.sounds.correct(number, "  dog   bark ")) == {"label": "dog bark", "windows": 5}
    (kept,) = room.store.read()
    ends = [decode_frame(frame)[0][0].capture_ns / 1e9 for frame in kept.frames]
    assert ends == [BEGAN, BEGAN + 0.5, BEGAN + 1, BEGAN + 1.5, BEGAN + 2]
    assert (kept.heard, kept.label, kept.made_at) == ("rain", "dog bark", room.clock.now)
    assert [room.sounds.label_of(event) for event in room.events] == ["dog bark", "dog bark"]


def test_of_a_long_sound_some_windows_are_kept(room):
    number = room.told("off", BEGAN + 60)
    assert room.do(room.sounds.correct(number, "dog"))["windows"] <= 16


def test_what_was_said_is_known_after_a_restart(tmp_path):
    room = Room(tmp_path)
    room.do(room.sounds.correct(room.told("off", BEGAN + 1), "dog"))
    later = Room(tmp_path)
    later.told("off", BEGAN + 1)
    assert later.sounds.label_of(later.events[0]) == "dog"
    assert [one["label"] for one in later.sounds.corrections] == ["dog"]


def test_events_about_updates_have_no_sound(room):
    room.events.append(FleetEvent(number=1, at=0.0, device="pi-0", kind="proven"))
    for work in (room.sounds.picture(1), room.sounds.audio(1), room.sounds.correct(1, "dog"), room.sounds.picture(2)):
        with pytest.raises(UsageError, match="no such event any more"):
            room.do(work)
