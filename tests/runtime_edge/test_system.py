"""The machine's sensors, made-up and real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from waiting import until

from runtime_edge.system import CpuMonitor, health, rss_mb, temperature_c, throttled


def test_cpu_load_agrees_with_psutil_under_a_real_load() -> None:
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        burnt = psutil.Process(burner.pid).cpu_times
        until(lambda: burnt().user > 0.1)
        monitor = CpuMonitor()
        psutil.cpu_percent()
        enough = burnt().user + 0.8
        until(lambda: burnt().user > enough)
        theirs = psutil.cpu_percent() / 100
        ours = monitor.load()
    finally:
        burner.kill()
        burner.wait()

    assert ours == pytest.approx(theirs, abs=0.06)
    assert ours > 0.5 / (psutil.cpu_count() or 1)


def test_cpu_load_is_read_at_most_once_in_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monitor = CpuMonitor(period_s=0.1, now=lambda: now[0])
    assert monitor.load() == 0.0
    now[0] = 0.05
    assert monitor.load() == 0.0
    now[0] = 0.11
    first = monitor.load()
    monkeypatch.setattr(os, "pread", None)  # what would read, fails
    monkeypatch.setattr(psutil, "cpu_times", None)
    assert {monitor.load() for _ in range(1_000)} == {first}
    assert 0.0 <= first <= 1.0


def test_memory_is_that_of_this_process() -> None:
    block = np.ones(40_000_000 // 8)

    assert rss_mb() > 40
    assert rss_mb() == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.2)
    assert block[0] == 1.0


def test_the_hottest_zone_that_makes_sense_is_the_temperature(tmp_path: Path) -> None:
    assert temperature_c(tmp_path) is None
    for number, text in enumerate(["47236\n", "52100\n", "-274000\n", "", "no number"]):
        zone = tmp_path / f"class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)

    assert temperature_c(tmp_path) == 52.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0\n", False), ("50005\n", True), ("50000\n", False), ("0x8\n", True), ("", None), ("junk", None)],
)
def test_throttling_is_what_the_firmware_says_of_now(tmp_path: Path, text: str, expected: bool | None) -> None:
    assert throttled(tmp_path) is None
    firmware = tmp_path / "devices/platform/soc/soc:firmware"
    firmware.mkdir(parents=True)
    (firmware / "get_throttled").write_text(text)

    assert throttled(tmp_path) is expected


def test_health_of_this_machine_can_be_read() -> None:
    found = health()

    assert found.rss_mb > 1
    assert found.temperature_c is None or -40 < found.temperature_c < 150
    assert found.throttled in (None, False, True)
