"""Two devices of one name each find the other; one that starts again finds nobody."""

import asyncio

import msgspec
import pytest

from runtime_edge.formats import subjects
from runtime_edge.service.namesake import NamesakeWatch
from runtime_edge.transport.in_memory import InMemoryTransport


def report(boot, windows):
    fields = {"version": 2, "device": "pi-1", "target": "rpi4", "boot": boot, "windows_captured": windows}
    return msgspec.json.encode(fields)


class Reports:
    """Devices of one name, who report in turn: each looks before it puts its own."""

    def __init__(self, *boots):
        self.transport = InMemoryTransport()
        self.watches = {boot: NamesakeWatch(self.transport, "pi-1", boot) for boot in boots}

    def take_turns(self, rounds, *boots):
        async def work():
            for windows in range(rounds):
                for boot in boots:
                    await self.watches[boot].look()
                    await self.transport.put(subjects.PRESENCE, report(boot, windows))

        asyncio.run(work())

    def found(self):
        return [watch.found for watch in self.watches.values()]


def test_both_of_two_devices_of_one_name_are_told_once_each_and_again_when_it_is_over(caplog):
    reports = Reports("aa", "bb")
    reports.take_turns(30, "aa", "bb")
    for found, other in zip(reports.found(), ("bb", "aa"), strict=True):
        assert found.startswith(f"another device reports under the name pi-1 (target rpi4, run {other})")
        assert found.endswith("give each a --device of its own")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    reports.take_turns(30, "aa")
    assert reports.found()[0] == ""


def test_what_an_earlier_run_has_left_is_no_other_device():
    reports = Reports("aa", "bb")
    reports.take_turns(5, "aa")
    reports.take_turns(30, "bb")
    assert reports.found() == ["", ""]


def test_an_earlier_run_is_none_even_while_this_ones_reports_do_not_arrive():
    reports = Reports("aa", "bb")
    reports.take_turns(5, "aa")

    async def look_often():
        for _ in range(30):
            await reports.watches["bb"].look()

    asyncio.run(look_often())
    assert reports.found() == ["", ""]


@pytest.mark.parametrize("stored", [None, b"{", b"[]", b"{}"])
def test_what_cannot_be_read_or_is_away_ends_nothing(stored):
    reports = Reports("aa")
    if stored is not None:
        reports.transport.values[subjects.PRESENCE, "pi-1"] = stored
    else:
        reports.transport.disconnect()

    async def look_often():
        for _ in range(30):
            await reports.watches["aa"].look()

    asyncio.run(look_often())
    assert reports.found() == [""]
