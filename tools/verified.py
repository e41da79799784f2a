"""A pytest plugin that records the outcome of the tests: `pytest -p tools.verified` writes docs/verified.json.

The file has the commit (followed by "+" if files were changed), the date, the outcomes of the tests by file and by
marker, and why tests were skipped. Only a complete run writes it, not one with -k, -m or paths.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter, defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARKERS = ("integration", "slow")


class Verified:
    """Counts outcomes as they are reported, in the process to which the workers report."""

    def __init__(self) -> None:
        self.outcomes: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.reasons: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test: it fails if any of its phases does, is skipped before its call, and passes with its call."""
        known, _ = self.outcomes.get(report.nodeid, ("", ()))
        if report.when == "call" or report.outcome != "passed":
            outcome = "failed" if "failed" in (known, report.outcome) else report.outcome
            markers = tuple(name for name in MARKERS if name in report.keywords) or ("unit",)
            self.outcomes[report.nodeid] = outcome, markers
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1

    def record(self, commit: str, date: str) -> dict[str, Any]:
        """The content of docs/verified.json."""
        files: dict[str, Counter[str]] = defaultdict(Counter)
        markers: dict[str, Counter[str]] = defaultdict(Counter)
        for nodeid, (outcome, marked) in self.outcomes.items():
            files[nodeid.partition("::")[0]][outcome] += 1
            for marker in marked:
                markers[marker][outcome] += 1
        return {
            "commit": commit,
            "date": date,
            "markers": {name: dict(sorted(counts.items())) for name, counts in sorted(markers.items())},
            "skipped": dict(sorted(self.reasons.items())),
            "files": {name: dict(sorted(counts.items())) for name, counts in sorted(files.items())},
        }


def git(*arguments: str) -> str:
    """Run git in this repository; returns its output."""
    return subprocess.check_output(["git", "-C", str(ROOT), *arguments], text=True).strip()


def commit() -> str:
    """The commit that is checked out, followed by "+" if files differ from it."""
    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def pytest_configure(config: pytest.Config) -> None:
    """Count outcomes in the process to which the workers report."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Verified(), "verified")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the record of a complete run."""
    plugin, options = session.config.pluginmanager.get_plugin("verified"), session.config.option
    if plugin is None or options.collectonly or options.markexpr or options.keyword or options.file_or_dir:
        return
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    (ROOT / "docs" / "verified.json").write_text(json.dumps(plugin.record(commit(), date), indent=2) + "\n")
