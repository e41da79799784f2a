import json

import numpy as np
import pytest

from runtime_edge.transport.accounting import Accounting, LoopCounts, merged


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
    report = json.loads(json.dumps(merged(Accounting().report(0), LoopCounts().report())))
    numbers = [value for value in report.values() if isinstance(value, int) and not isinstance(value, bool)]
    assert not any(numbers)
    assert report["finished"] == report["errors"] == report["dropped"] == report["latency_ms"] == {}


def test_latencies_are_percentiles_by_cut():
    counts = LoopCounts()
    values = np.random.default_rng(0).exponential(10, 500)
    counts.latency_ms["layer1"].extend(values)
    counts.latency_ms["local"].append(3.0)
    latency = counts.report()["latency_ms"]
    assert latency["layer1"]["p50"] == pytest.approx(np.median(values), abs=1e-3)
    assert latency["layer1"]["p95"] == pytest.approx(np.percentile(values, 95), abs=1e-3)
    assert latency["layer1"]["windows"] == 500
    assert latency["local"] == {"p50": 3.0, "p95": 3.0, "windows": 1}


def test_memory_stays_bounded_over_months():
    counts = LoopCounts()
    counts.latency_ms["layer1"].extend(range(100_000))
    latency = counts.report()["latency_ms"]["layer1"]
    assert latency["windows"] == 4096
    assert latency["p50"] == pytest.approx(100_000 - 2048, abs=1)  # of the latest


def test_a_report_has_what_both_sides_have_counted():
    accounting, counts = Accounting(), LoopCounts()
    for where in ("server", "server", "fallback"):
        counts.finished[where] += 1
    accounting.errors["SpoolError"] += 1
    counts.errors["LinkError"] += 1
    counts.errors["SpoolError"] += 2
    accounting.dropped["spool_full"] += 3
    accounting.dropped["spool_refused"] += 1
    report = merged(accounting.report(0), counts.report())
    assert report["finished"] == {"server": 2, "fallback": 1}
    assert report["errors"] == {"SpoolError": 3, "LinkError": 1}
    assert report["windows_dropped"] == 4
    assert report["dropped"] == {"spool_full": 3, "spool_refused": 1}
