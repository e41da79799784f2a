"""A recording against a table: shares, and consequences by the table's costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_tables import make_table

from runtime_edge.errors import FormatError, TableError
from streamsplit_compile.splitter.result_replay import read_results, replay

SLOW, FAST = (0.0, 0.0, 0.0, 9.0, 0.0), (0.0, 9.0, 0.0, 0.0, 0.0)


def line(window: int, cut: str, mbps: float, **changes: Any) -> str:
    fields = {
        "window": window, "cut": cut, "probe": False, "uncertainty": 0.4, "cpu": 0.0, "bandwidth_mbps": mbps,
        "rtt_ms": 50.0, "latency_ms": 80.0, "embedding": [0.1, 0.2], "labels": {"dog": 0.5},
    }  # fmt: skip
    return json.dumps(fields | changes)


def test_of_a_window_with_two_answers_the_first_says_what_was_done(tmp_path):
    line = {"window": 3, "cut": "stem", "probe": False, "uncertainty": 0.5, "cpu": 0.1, "bandwidth_mbps": 2.0}
    line |= {"rtt_ms": 60.0, "latency_ms": 4.0, "width": 8}
    first, second = line | {"answer": "exit"}, line | {"answer": "server", "revises": 1, "latency_ms": 90.0}
    (tmp_path / "log").write_text("\n".join(map(json.dumps, (first, second))))
    log = read_results(tmp_path / "log")
    assert [(window.action, window.latency_ms) for window in log.windows] == [("stem/8+exit", 4.0)]
    assert log.lines == [1]


def test_a_recording_is_compared_with_what_the_table_takes(tmp_path: Path) -> None:
    log = tmp_path / "results.jsonl"
    cuts = ["layer1", "layer1", "embedding", "local"]
    log.write_text(
        "\n".join(line(i, cut, 0.5 if i < 2 else 5.0) for i, cut in reversed(list(enumerate(cuts)))) + "\n\n"
    )
    found = replay(make_table((SLOW, FAST)), read_results(log))
    assert found.windows == 4
    assert found.taken == {"waveform": 0, "layer1": 0.5, "layer2": 0, "embedding": 0.25, "local": 0.25}
    assert found.chosen == {"waveform": 0, "layer1": 0.5, "layer2": 0, "embedding": 0.5, "local": 0}
    assert found.changed == 1.0
    assert found.measured_latency_ms == 80.0
    # Half-second windows: 7200 an hour.
    assert found.recorded.mb_per_hour == pytest.approx((2 * 16_000 + 256) / 4 * 7200 / 1e6)
    assert found.table.mb_per_hour == pytest.approx((2 * 16_000 + 2 * 256) / 4 * 7200 / 1e6)
    assert found.table.latency_ms < found.recorded.latency_ms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no results in it"),
        ("\n{", r"log.jsonl:2: "),
        (line(0, "layer1", 1.0, cpu="high"), r"log.jsonl:1: .*cpu"),
        ("[]", r"log.jsonl:1: "),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_results(tmp_path / "log.jsonl")


def test_a_cut_of_another_bundle_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join([line(8, "layer1", 1.0), "", line(7, "layer9", 1.0), ""]))
    with pytest.raises(TableError) as refused:
        replay(make_table((SLOW, FAST)), read_results(log))
    assert str(refused.value) == (
        f"{log}:3: cut 'layer9' is not in the table, which has waveform, layer1, layer2, embedding, local: "
        "give a table of the bundle that the device ran"
    )
