"""What a whole run leaves behind, and what it counts as what."""

from __future__ import annotations

import pytest

from tools.verified import Verified


def report(nodeid: str, when: str, outcome: str, *markers: str, why: str = "") -> pytest.TestReport:
    longrepr = (nodeid, 1, f"Skipped: {why}") if outcome == "skipped" else None
    return pytest.TestReport(nodeid, (nodeid, 1, nodeid), dict.fromkeys(markers, 1), outcome, longrepr, when)


def test_tests_are_counted_once_by_file_and_marker_with_the_reasons_of_those_skipped() -> None:
    verified = Verified()
    for phases in (
        [report("tests/a.py::good", when, "passed") for when in ("setup", "call", "teardown")],
        [report("tests/a.py::bad", "setup", "passed", "slow"), report("tests/a.py::bad", "call", "failed", "slow")],
        [report("tests/b.py::torn", "call", "passed"), report("tests/b.py::torn", "teardown", "failed")],
        [report("tests/b.py::out", "setup", "skipped", "integration", "slow", why="no root")],
    ):
        for phase in phases:
            verified.pytest_runtest_logreport(phase)
    assert verified.record("abc", "2026-01-01") == {
        "commit": "abc",
        "date": "2026-01-01",
        "markers": {
            "integration": {"skipped": 1},
            "slow": {"failed": 1, "skipped": 1},
            "unit": {"failed": 1, "passed": 1},
        },
        "skipped": {"no root": 1},
        "files": {"tests/a.py": {"failed": 1, "passed": 1}, "tests/b.py": {"failed": 1, "skipped": 1}},
    }
