import asyncio
import contextlib

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
        self.clock, self.events, self.read, self.is_late, self.lends = Clock(), [], [], False, False
        self.store = Corrections(state)
        self.sounds = Sounds(
            lambda: self.events, self._sent, self._lent, FRONT_END, lambda: CODECS, self.store, self.clock
        )

    async def _sent(self, moment):
        self.read.append(moment)
        return [] if self.is_late else sent(moment.device, "rain", moment)

    async def _lent(self, moment):
        return sent("pi-0", "rain", moment) if self.lends else []

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


def test_of_a_long_sound_without_its_beginning_it_is_known_when_that_was_sent(room):
    room.clock.now = 9000.0
    number = room.told("off", BEGAN + 3600)
    room.do(room.sounds.picture(number))
    (moment,) = room.read
    assert (moment.since, moment.until) == (BEGAN, BEGAN + LONGEST_S)
    assert moment.told_at == 9000.0 - (3600 - LONGEST_S)


def test_what_comes_late_out_of_a_spool_is_seen_then(room):
    number, room.is_late = room.told("off", BEGAN + 2), True
    room.clock.now += 10 * LONGEST_S
    assert "kept it to itself" in room.do(room.sounds.picture(number))["why"]
    room.clock.now, room.is_late = room.clock.now + 60, False
    assert room.do(room.sounds.picture(number))["seconds"] == pytest.approx(3.0)


@pytest.mark.parametrize("device", ["pi-1", "pi-2"])
def test_a_clip_that_a_device_lends_is_seen_heard_and_learnt_from(room, device):
    """One device sends activations, the other nothing."""
    number = room.told("off", BEGAN + 2, device)
    assert "lends no clip" in room.do(room.sounds.picture(number))["why"]
    room.lends, room.clock.now = True, room.clock.now + 60
    assert room.do(room.sounds.picture(number))["seconds"] == pytest.approx(3.0)
    assert room.do(room.sounds.audio(number)).startswith(b"RIFF")
    room.do(room.sounds.correct(number, "dog"))
    (kept,) = room.store.read()
    assert {header.cut for frame in kept.frames for header, _ in decode_frame(frame)} == {0}


def test_a_correction_whose_asker_gave_up_is_kept_and_listed(room):
    number = room.told("off", BEGAN + 1)

    async def give_up():
        asked = asyncio.create_task(room.sounds.correct(number, "dog"))
        while not room.read:
            await asyncio.sleep(0)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        await room.sounds.look()

    room.do(give_up())
    assert [one["label"] for one in room.sounds.corrections] == [one.label for one in room.store.read()]


def test_what_others_remove_is_listed_no_more_and_what_has_no_event_can_be_taken_back(room):
    for since in (BEGAN, BEGAN + 50):
        room.do(room.sounds.correct(room.told("off", since + 1, since=since), "dog"))
    (first, second) = room.store.read()
    room.store.forget(*first.sound)
    room.do(room.sounds.look())
    assert [one["since"] for one in room.sounds.corrections] == [second.since]
    room.events.clear()
    assert room.do(room.sounds.forget(*second.sound)) == {"label": "", "windows": 0}
    assert (room.sounds.corrections, room.store.read()) == ([], [])


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
