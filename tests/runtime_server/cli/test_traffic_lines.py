"""Traffic of devices for people and programs."""

from runtime_edge.base.text import moment
from runtime_server.cli.traffic_lines import as_json, show_table, totals, waiting

REPORTS = {
    "pi-1": {"traffic": [[1, 2, 3], [1_234_567, 2000, 0, 5400], [888_000_000, 999_900_000, 46_000_000, 864_000]]},
    "kitchen": {"traffic": [[1, 2, 3], [1_000_000, 1000, 10, 7200], [100_000_000, 100_000_000, 1_000_000, 86_400]]},
    "old": {},
}


def test_all_devices_together():
    assert totals(REPORTS) == [
        "traffic an hour: 2.2 MB up, 3.0 kB down, 10 B of it updates (from 90 min)",
        "traffic a month: 988.0 MB up, 1.1 GB down, 47.0 MB of it updates (from 24 h)",
    ]
    assert totals({"old": {}}) == []
    assert as_json(REPORTS)["hour"] == {"up": 2_234_567, "down": 3000, "updates": 10, "seconds": 5400}


def test_a_table_fits_80_columns(capsys):
    show_table(REPORTS)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for words in ("pi-1", "888.0 MB", "46.0 MB", "an hour", "a month", "old"):
        assert words in printed


def test_who_waits_for_a_budget_and_until_when():
    until = 1_900_000_000
    waits = {"generation": 8, "manifest": "sha256:1", "until": until, "reason": "x"}
    reports = {"pi-1": {"update_waits": waits}, "pi-2": {"update_waits": {**waits, "until": None}}, "pi-3": {}}
    assert waiting(reports) == [
        f"pi-1: generation 8 waits until {moment(until)}",
        "pi-2: generation 8 never fits its budget",
    ]
