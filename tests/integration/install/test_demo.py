"""The extra `demo`: the demo, and pictures of tables."""

import json
import shutil

import harness
import pytest

EXTRAS = "demo"
BRINGS = {"demo", "web", "server", "compile", "edge", "audio", "metrics"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_demo_recognises_and_writes_a_report(terminal):
    recordings = terminal.directory / "recordings"
    for seed in range(8):  # with less to learn from there is nothing to release
        harness.write_wav(recordings / f"{seed}.wav", 60.0, seed=seed)
    lines = ["filename,class", *(f"{seed}.wav,{('rain', 'moo')[seed % 2]}" for seed in range(8))]
    (recordings / "labels.csv").write_text("\n".join(lines))
    said = terminal.types("ssc demo --audio recordings/ -o demo-report/", "--seconds 30")
    report = terminal.directory / "demo-report" / "report.html"
    assert str(report) in said.splitlines(), "in one piece"
    assert "What was heard" in report.read_text()
    summary = json.loads(report.with_name("summary.json").read_bytes())
    heard = summary["heard"]
    assert list(heard["by_label"]) == ["rain"], "the head knows no moo"
    assert heard["not_labelled"] > 0 < heard["recordings"]
    alone = summary["devices"]["pi-alone"]
    assert (alone["windows_acked"], alone["windows_local"]) == (0, alone["windows_captured"])
    assert alone["bytes_as_opus"] * 16 == alone["bytes_as_pcm16"] > 0


def test_tables_are_drawn(toy_terminal):
    here = toy_terminal.directory
    (here / "docs").mkdir()
    shutil.copy(here / "bundle" / "tables" / "rpi4.json", here / "table.json")
    for command in (
        "ssc splitter map bundle/tables/rpi4.json -o docs/splitter-rpi4.svg",
        "ssc splitter map bundle/tables/rpi4.json --rtt-ms 15 -o docs/splitter-mobilenet-rpi4.svg",
        "ssc splitter eval table.json --traces wifi --plot eval.svg",
    ):
        toy_terminal.types(command)
        assert "<svg" in (here / command.split()[-1]).read_text()
