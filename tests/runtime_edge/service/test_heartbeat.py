"""Who hears how the device is, and how often."""

import asyncio
import threading
from types import SimpleNamespace

import msgspec
import pytest
from statuses import status
from waiting import eventually

from runtime_edge.base.aio import cancel_all
from runtime_edge.errors import SpoolError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.report import decode_report
from runtime_edge.service.heartbeat import Heartbeat, ReportPace
from runtime_edge.service.status import STALE_S, read_status, write_status
from runtime_edge.transport.in_memory import InMemoryTransport

PRESENCE = subjects.PRESENCE, "pi-1"


class Manager:
    """systemd, which has to hear something at once."""

    watchdog_s = 0.03

    def __init__(self):
        self.said = []

    def alive(self):
        self.said.append("alive")

    def stopping(self):
        self.said.append("stopping")

    def status(self, text):
        self.said.append(text)


@pytest.fixture
def manager():
    return Manager()


async def beating(heartbeat, until):
    task = asyncio.create_task(heartbeat.beat_forever())
    await eventually(until)
    await cancel_all([task])


def test_a_beat_is_in_the_directory_at_the_server_and_at_systemd(tmp_path, manager):
    transport, made = InMemoryTransport(), status()

    async def make(ended):
        return msgspec.structs.replace(made, ended=ended)

    async def work():
        metrics = SimpleNamespace(latest=None)
        heartbeat = Heartbeat(tmp_path, make, transport, manager, metrics)
        await beating(heartbeat, lambda: PRESENCE in transport.values)
        assert metrics.latest == made
        assert read_status(tmp_path).ended is None
        await heartbeat.last("its source has ended")

    asyncio.run(work())
    assert decode_report(transport.values[PRESENCE], "presence") == {"version": 2, **made.report}
    assert "alive" in manager.said
    assert any("generation 7, cut one" in said for said in manager.said)
    assert manager.said[-1] == "stopping"
    assert read_status(tmp_path).ended == "its source has ended"


def test_while_the_link_is_down_the_device_is_alive_and_the_server_hears_nothing(tmp_path, manager):
    transport = InMemoryTransport()
    transport.disconnect()

    async def make(ended):
        return status()

    asyncio.run(beating(Heartbeat(tmp_path, make, transport, manager), lambda: manager.said.count("alive") > 1))
    assert transport.values == {}


def test_a_microphone_that_has_fallen_silent_lets_the_watchdog_fire(tmp_path, manager):
    async def make(ended):
        return status(source_silent_s=STALE_S + 1)

    asyncio.run(beating(Heartbeat(tmp_path, make, None, manager), lambda: len(manager.said) > 1))
    assert "alive" not in manager.said


def test_a_disk_that_fails_does_not(tmp_path, manager):
    async def make(ended):
        raise SpoolError("no room")

    asyncio.run(beating(Heartbeat(tmp_path, make, None, manager), lambda: len(manager.said) > 1))
    assert set(manager.said) == {"alive"}


def test_who_else_has_this_name_is_looked_for_before_the_report_takes_its_place(tmp_path, manager):
    transport = InMemoryTransport()
    transport.values[PRESENCE] = b"another's"
    seen = []

    class Watch:
        async def look(self):
            seen.append(transport.values[PRESENCE])

    async def make(ended):
        return status()

    heartbeat = Heartbeat(tmp_path, make, transport, manager, namesakes=Watch())
    asyncio.run(beating(heartbeat, lambda: len(seen) > 1))
    assert seen[0] == b"another's"
    assert decode_report(seen[1], "presence")["version"] == 2


def test_a_beat_that_a_slow_card_still_writes_does_not_replace_the_last_word(tmp_path, manager, monkeypatch):
    made, began, may_write = status(), threading.Event(), threading.Event()

    def slow(state, what):
        if what.ended is None:
            began.set()
            may_write.wait(10)
        write_status(state, what)

    async def make(ended):
        return msgspec.structs.replace(made, ended=ended)

    async def work():
        heartbeat = Heartbeat(tmp_path, make, None, manager)
        await beating(heartbeat, began.is_set)
        last = asyncio.create_task(heartbeat.last("it was stopped"))
        await asyncio.sleep(0)
        may_write.set()
        await last

    monkeypatch.setattr("runtime_edge.service.heartbeat.write_status", slow)
    asyncio.run(work())
    assert read_status(tmp_path).ended == "it was stopped"


def test_reports_come_seldom_unless_something_happens():
    pace, reported = ReportPace(), []
    encoder = msgspec.structs.replace(status().encoder, on_trial=False)

    def beat(now, **changes):
        changed = msgspec.structs.replace(status(), **{"encoder": encoder, **changes})
        if pace.is_due(changed, now):
            reported.append(now)

    for now in range(0, 200, 5):
        beat(now)
    assert reported == [0, 5, 10, 70, 130, 190]
    reported.clear()
    newer = msgspec.structs.replace(encoder, generation=encoder.generation + 1)
    for now in range(200, 400, 5):
        beat(now, encoder=newer)
    assert reported == [*range(200, 260, 5), 315, 375]
    reported.clear()
    on_trial = msgspec.structs.replace(newer, on_trial=True)
    for now in range(400, 420, 5):
        beat(now, encoder=on_trial)
    assert reported == [400, 405, 410, 415]
    reported.clear()
    for now in range(420, 440, 5):
        beat(now, encoder=newer, report={"errors": {"LinkError": 1}})
    assert reported == [420], "an error that is new, once"
