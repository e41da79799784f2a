import msgspec
from reports import REPORT, Clock

from runtime_server.telemetry.fleet import Fleet
from runtime_server.telemetry.fleet_history import MINUTES


def report(mbps, **cuts):
    return REPORT | {"cuts": cuts, "state": {"bandwidth_mbps": mbps}}


def test_windows_count_in_the_minute_of_their_report_by_cut_and_bandwidth():
    clock = Clock()
    clock.now = 600_000.0
    fleet = Fleet(clock)
    fleet.report("pi-1", report(0.2, stem=10))
    fleet.report("pi-2", report(8.0, stem=5))
    clock.now += 60
    fleet.report("pi-1", report(0.2, stem=12, local=30))
    fleet.report("pi-2", report(20.0, stem=15))
    first, second = fleet.history.minutes
    assert (first.at, first.devices, first.windows) == (600_000.0, 2, {}), "what came before is not known"
    assert second.windows == {"stem": 12, "local": 30}
    assert second.bands == {"stem": {2: 2, 9: 10}, "local": {2: 30}}
    assert second.mbps == (0.2, 0.2, 20.0)


def test_counts_of_another_run_are_none_of_this_minute():
    fleet = Fleet(Clock())
    fleet.report("pi-1", report(1.0, stem=10))
    fleet.report("pi-1", report(1.0, stem=500) | {"boot": "b2"})
    (minute,) = fleet.history.minutes
    assert minute.windows == {}


def test_a_day_is_kept():
    clock = Clock()
    fleet = Fleet(clock)
    for count in range(MINUTES + 100):
        clock.now += 60
        fleet.report("pi-1", report(1.0, stem=count))
    assert len(fleet.history.minutes) == MINUTES + 1
    assert len(msgspec.json.encode(fleet.history.minutes)) < 300_000
