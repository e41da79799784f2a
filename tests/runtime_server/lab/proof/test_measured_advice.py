"""Advice by what was measured, on a bench whose figures can be worked out by hand."""

import json

import msgspec
import pytest
from click.testing import CliRunner

from runtime_server.lab.accuracy import Accuracy
from runtime_server.lab.bench_commands import show_command
from runtime_server.lab.proof.measured_advice import measured_advice, measured_sources
from runtime_server.lab.proof.proof_page import write_page


@pytest.fixture
def played(bench, run):
    early = msgspec.structs.replace(
        run("cut:one/8+exit", 0, 150.0, 10.0, 25.0),
        first_latency_ms={"p50": 10.0, "p95": 11.0, "p99": 12.0},
        fidelity_first=0.8,
        energy_mj={"compute": 10.0, "radio": 15.0, "total": 25.0, "idle": 1000.0},
    )
    accuracy = bench.encoders["toy"].accuracy | {"cut:one/8+exit": Accuracy(0.9, 0.8, 0.2, 40, 0.88, 0.75)}
    encoders = {"toy": msgspec.structs.replace(bench.encoders["toy"], accuracy=accuracy)}
    runs = [*bench.runs, run("device-only", 0, 60.0, 0.5, 40.0, "local"), run("rule", 0, 1.0, 0.1, 1.0), early]
    return msgspec.structs.replace(bench, runs=runs, encoders=encoders)


def test_each_policy_is_as_it_was_measured_and_called_as_ssc_advise_calls_it(played):
    advice = measured_advice(played, "toy", "lte")
    assert [one.policy for one in advice.estimates] == [
        "PCM", "Opus 6", "Opus 12", "table", "device only", "one/8+exit"
    ]  # fmt: skip
    early = advice.of("one/8+exit")
    assert (early.first_ms, early.final_ms, early.head, early.head_first) == (10.0, 150.0, 0.88, 0.75)
    assert early.up_bytes == pytest.approx(10e6 / 7200)  # two windows a second
    assert early.down_bytes == pytest.approx(1e6 / 7200)
    assert (early.above_idle_mj, early.idle_mj) == (25.0, 1000.0)
    # 10 (0.8 + 0.99) / 2 - 5 (10 + 150) / 2 / 200 - 3 * 25 / 100
    assert early.reward == pytest.approx(8.95 - 2.0 - 0.75)
    pcm = advice.of("PCM")
    assert pcm.first_ms == pcm.final_ms == 210.0  # the median of both repetitions
    assert pcm.head is None


def test_the_best_of_what_was_played_is_advised_and_what_no_user_can_have_is_not(played):
    advice = measured_advice(played, "toy", "lte")
    assert advice.best.policy == "table"
    assert advice.sentence().startswith("rpi4 over lte: let the table choose, as devices do by default: 40 ms, 20 mJ")
    only = msgspec.structs.replace(played, runs=[one for one in played.runs if one.policy in ("table", "rule")])
    assert measured_advice(only, "toy", "lte") is None


def test_it_stands_at_the_end_of_what_is_shown_and_on_the_page_with_its_sources(played, tmp_path):
    assert any("kept to rpi4's predicted times" in line for line in measured_sources(played))
    (tmp_path / "bench.json").write_bytes(played.to_json())
    shown = CliRunner().invoke(show_command, [str(tmp_path / "bench.json")], catch_exceptions=False).output
    assert "toy, lte: of the policies that were played" in shown
    assert "75.0%, 88.0%" in shown
    assert shown.rstrip().splitlines()[-1].startswith("rpi4 over lte: let the table choose")
    asked = [str(tmp_path / "bench.json"), "--json"]
    told = json.loads(CliRunner().invoke(show_command, asked, catch_exceptions=False).output)
    assert [one["policy"] for one in told["runs"]] == [one.policy for one in played.runs]
    assert told["advice"][0].startswith("rpi4 over lte: let the table choose")
    write_page(played, tmp_path / "bench.md")
    assert "Of these policies, for rpi4 over lte: let the table choose" in (tmp_path / "bench.md").read_text()
