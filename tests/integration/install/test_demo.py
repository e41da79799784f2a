"""The extra `demo`: the demo, and pictures of tables."""

import shutil

import harness
import pytest

EXTRAS = "demo"
BRINGS = {"demo", "web", "server", "compile", "edge", "audio", "metrics"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_demo_writes_a_report(terminal):
    for seed in range(8):  # with less to learn from there is nothing to release
        harness.write_wav(terminal.directory / "recordings" / f"{seed}.wav", 60.0, seed=seed)
    terminal.types("ssc demo --audio recordings/ -o demo-report/", "--encoder mobilenet_v3_small --seconds 10")
    assert (terminal.directory / "demo-report" / "report.html").exists()


def test_tables_are_drawn(toy_terminal):
    here = toy_terminal.directory
    (here / "docs").mkdir()
    shutil.copy(here / "bundle" / "tables" / "rpi4.json", here / "table.json")
    for command in (
        "ssc splitter map bundle/tables/rpi4.json -o docs/splitter-rpi4.svg",
        "ssc splitter map bundle/tables/rpi4.json --rtt 15 -o docs/splitter-mobilenet-rpi4.svg",
        "ssc splitter eval table.json --traces wifi --plot eval.svg",
    ):
        toy_terminal.types(command)
        assert "<svg" in (here / command.split()[-1]).read_text()
