import json
import threading

import numpy as np
import pytest

from runtime_edge.transport.accounting import Accounting


@pytest.mark.parametrize(
    ("counts", "spooled", "lost"),
    [
        ({}, 0, 0),
        ({"captured": 10, "acked": 10}, 0, 0),
        ({"captured": 10, "acked": 4, "kept_local": 3}, 3, 0),
        ({"captured": 10, "acked": 4, "kept_local": 3}, 1, 2),
        # What an earlier run left in the spool accounts for none of this run's windows.
        ({"captured": 10, "acked": 4, "kept_local": 3, "inherited": 5}, 5, 3),
        ({"captured": 10, "acked": 4, "kept_local": 3, "inherited": 5}, 8, 0),
        ({"captured": 10, "acked": 4, "dropped": {"spool_full": 2, "spool_refused": 1}, "undecided": 2}, 1, 0),
        ({"captured": 10, "acked": 4, "dropped": {"spool_full": 2}, "undecided": 2}, 1, 1),
    ],
)
def test_lost_is_what_nothing_else_accounts_for(counts, spooled, lost):
    accounting = Accounting(**counts)
    assert accounting.lost(spooled) == lost
    report = accounting.report(spooled)
    assert report["windows_lost"] == lost
    assert report["windows_spooled"] == spooled


def test_the_report_is_json_and_starts_at_zero():
    report = json.loads(json.dumps(Accounting().report(0)))
    numbers = [value for value in report.values() if isinstance(value, int) and not isinstance(value, bool)]
    assert not any(numbers)
    assert report["finished"] == report["errors"] == report["dropped"] == report["latency_ms"] == {}


def test_latencies_are_percentiles_by_cut():
    accounting = Accounting()
    values = np.random.default_rng(0).exponential(10, 500)
    accounting.latency_ms["layer1"].extend(values)
    accounting.latency_ms["local"].append(3.0)
    latency = accounting.report(0)["latency_ms"]
    assert latency["layer1"]["p50"] == pytest.approx(sorted(values)[250], rel=0.05)
    assert latency["layer1"]["p95"] == pytest.approx(sorted(values)[475], rel=0.05)
    assert latency["layer1"]["windows"] == 500
    assert latency["local"] == {"p50": 3.0, "p95": 3.0, "windows": 1}


def test_memory_stays_bounded_over_months():
    accounting = Accounting()
    accounting.latency_ms["layer1"].extend(range(100_000))
    latency = accounting.report(0)["latency_ms"]["layer1"]
    assert latency["windows"] == 4096
    assert latency["p50"] == pytest.approx(100_000 - 2048, abs=1)  # of the latest


def test_windows_are_counted_where_they_finished():
    accounting = Accounting()
    for where in ("server", "server", "fallback"):
        accounting.finished[where] += 1
    accounting.errors["link"] += 1
    accounting.dropped["spool_full"] += 3
    accounting.dropped["spool_refused"] += 1
    report = accounting.report(0)
    assert report["finished"] == {"server": 2, "fallback": 1}
    assert report["errors"] == {"link": 1}
    assert report["windows_dropped"] == 4
    assert report["dropped"] == {"spool_full": 3, "spool_refused": 1}


def test_windows_may_finish_while_the_report_is_made():
    accounting, ended = Accounting(), threading.Event()

    def finish():
        number = 0
        while not ended.is_set():
            accounting.finish(f"cut-{number}", "server", float(number))
            number += 1

    finisher = threading.Thread(target=finish)
    finisher.start()
    try:
        for _ in range(200):
            assert accounting.report(0)["windows_lost"] == 0
    finally:
        ended.set()
        finisher.join()
