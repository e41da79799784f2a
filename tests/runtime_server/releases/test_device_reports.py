"""What devices say of themselves may be anything."""

import math

from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.base.traffic.traffic_log import Rate, Traffic
from runtime_server.releases.device_reports import (
    DeviceTraffic,
    LastReport,
    WaitingUpdate,
    all_together,
    failure,
    per_day,
    waiting_update,
)

FIELDS = ("bundle", "on_trial", "traffic", "budget", "update_budget", "update_waits", "update_failures")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["generation", "manifest", "until", "event"]), inner)
    ),
    max_leaves=8,
)


def test_what_a_device_reports_is_read():
    report = {
        "bundle": "sha256:1", "on_trial": False, "traffic": [[1, 2, 3], [10, 20, 0, 3600], [100, 200, 50, 86_400]],
        "budget": [50.0, -3], "update_budget": [5, 1_000_000],
        "update_waits": {"generation": 8, "manifest": "sha256:2", "until": 1_800_000_000, "reason": "46 MB wait"},
    }  # fmt: skip
    traffic = DeviceTraffic(Rate(Traffic(10, 20, 0), 3600.0), Rate(Traffic(100, 200, 50), 86_400.0))
    waits = WaitingUpdate(8, "sha256:2", 1_800_000_000.0)
    assert LastReport.of(report, 7.0) == LastReport(7.0, "sha256:1", True, 5e6, waits, traffic)
    targets = [LastReport.of({**report, "target": target}, 7.0).target for target in ("rpi4", 4, None)]
    assert targets == ["rpi4", "", ""]
    assert LastReport.of(report, 7.0).until == 1_800_000_000
    never = {**report, "update_waits": {**report["update_waits"], "until": None}}
    assert waiting_update(never).until == math.inf
    assert LastReport.of(never, 7.0).until is None
    assert per_day({"budget": [2, 0], "update_budget": [5, 0]}) == 2e6
    assert per_day({}) == math.inf


def test_several_devices_are_added_up_and_those_that_say_nothing_left_out():
    one = DeviceTraffic(Rate(Traffic(1, 2, 3), 600.0), Rate(Traffic(10, 20, 30), 6000.0))
    both = all_together([one, one, DeviceTraffic()])
    assert both == DeviceTraffic(Rate(Traffic(2, 4, 6), 600.0), Rate(Traffic(20, 40, 60), 6000.0))
    assert all_together([]) == DeviceTraffic()


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_no_report_is_too_odd(report):
    assert per_day(report) > 0
    traffic = DeviceTraffic.of(report)
    assert min(*traffic.hour.traffic, *traffic.month.traffic) >= 0
    waits = waiting_update(report)
    assert waits is None or (waits.until >= 0 and waits.manifest.isprintable())
    assert failure(report, "sha256:1").isprintable()
    LastReport.of(report, 0.0)
