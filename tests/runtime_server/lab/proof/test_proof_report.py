"""Tables, goals and pages, from runs that are made up so that every ratio can be worked out by hand."""

import re

import msgspec
import pytest

from runtime_edge.errors import CheckFailed, FormatError, UsageError
from runtime_server.lab.accuracy import Accuracy
from runtime_server.lab.policy_bench import command_of, joined, read_bench
from runtime_server.lab.proof.goals import goals
from runtime_server.lab.proof.proof_page import write_page
from runtime_server.lab.proof.proof_report import (
    BEHAVIOUR,
    COSTS,
    QUALITY,
    TIMES,
    TRAFFIC,
    behaviour,
    compare,
    costs,
    quality,
    ratios,
    times,
    traffic,
)


def test_ratios_are_against_the_baseline_of_the_same_repetition(bench):
    first, second = ratios(bench, "toy", "lte", "table")
    assert (first.latency, second.latency) == (5.0, 5.5)
    assert first.bytes_saved == pytest.approx(0.8)
    assert first.energy_saved == pytest.approx(0.6)


def test_traffic_is_told_an_hour_and_a_month_of_such_hours(bench):
    rows = {policy: rest for policy, *rest in traffic(bench, "toy", "lte")}
    assert rows["table"] == ["20.00", "1.00", "0.00", "14.40", "0.72", "0.00"]
    runs = [msgspec.structs.replace(one, updates_mb_per_hour=0.5) for one in bench.runs]
    updated = traffic(msgspec.structs.replace(bench, runs=runs), "toy", "lte")
    assert updated[0][3::3] == ["0.50", "0.36"]
    assert len(updated[0]) == len(TRAFFIC)


def test_goals_say_what_is_met_and_by_how_much_the_rest_is_missed(bench):
    found = {goal.name: goal for goal in goals(bench, "toy")}
    assert found["latency"].value == 5.25
    assert found["latency"].met
    assert found["energy saved"].met
    assert found["points of accuracy lost"].value == pytest.approx(1.0)
    against_opus = found["bytes / Opus as accurate"]  # opus-6 is cheaper, but far less accurate
    assert against_opus.value == pytest.approx(20 / 16)
    assert not against_opus.met
    assert against_opus.missed_by == pytest.approx(0.25)
    assert "opus-12" in against_opus.why


def test_a_bench_differs_from_itself_by_nothing_and_from_a_slower_one_by_as_much(bench):
    assert all(row[-1] == 0 for row in compare(bench, bench))
    slower = msgspec.structs.replace(
        bench,
        runs=[
            msgspec.structs.replace(r, latency_ms={p: 2 * ms for p, ms in r.latency_ms.items()})
            if r.policy == "table"
            else r
            for r in bench.runs
        ],
    )
    worst = max(compare(bench, slower), key=lambda row: row[-1])
    assert worst[:2] == ("toy lte table", "latency")
    assert worst[-1] == pytest.approx(0.5)
    with pytest.raises(CheckFailed, match="in common"):
        compare(bench, msgspec.structs.replace(bench, runs=[]))


def test_what_is_measured_again_is_a_further_repetition_against_its_own_baseline(bench):
    slower = [
        msgspec.structs.replace(r, latency_ms={p: 2 * ms for p, ms in r.latency_ms.items()})
        for r in bench.runs
        if r.policy in ("pcm16", "table")
    ]
    whole = joined([bench, msgspec.structs.replace(bench, runs=slower)])
    assert [r.latency for r in ratios(whole, "toy", "lte", "table")] == [5.0, 5.5, 5.0, 5.5]
    assert [run.repeat for run in whole.runs if run.policy == "table"] == [0, 1, 2, 3]
    assert whole.repeats == 4
    with pytest.raises(UsageError, match="seconds"):
        joined([bench, msgspec.structs.replace(bench, seconds=30.0)])
    elsewhere = [msgspec.structs.replace(run, scenario="wifi") for run in bench.runs]
    whole = joined([bench, msgspec.structs.replace(bench, seconds=30.0, runs=elsewhere)])
    assert (whole.seconds, whole.shortest_s) == (30.0, bench.seconds)
    assert joined([bench, bench]).shortest_s == 0


def test_the_page_has_a_row_for_each_policy_and_its_pictures(bench, tmp_path):
    write_page(bench, tmp_path / "proof.md")
    page = (tmp_path / "proof.md").read_text()
    for policy in ("pcm16", "opus-12", "table"):
        assert page.count(f"\n| {policy} |") == 4  # how long it takes, what it costs, what it is worth, and what it did
    assert "at most 1.0, **missed** by 0.25" in page
    pictures = re.findall(r"\]\((.+\.svg)\)", page)
    assert len(pictures) == 3
    assert "| paper | server-only |  | up to 4.7x | -77.1% |  | -52.3% | 2.2 |" in page
    assert "| toy | opus-12 | 3.75x | 3.75x | +25.0% | +23.5% | -9.1% | 1.0 |" in page  # 21 MB/h both ways, and 17
    assert all((tmp_path / picture).read_text().lstrip().startswith("<?xml") for picture in pictures)
    assert all(len(row) == len(TIMES) for row in times(bench, "toy", "lte"))
    assert all(len(row) == len(COSTS) for row in costs(bench, "toy", "lte"))
    assert all(len(row) == len(BEHAVIOUR) for row in behaviour(bench, "toy", "lte"))
    assert all(len(row) == len(QUALITY) for row in quality(bench, "toy", "lte"))


def test_first_and_last_answers_stand_beside_each_other_with_the_accuracy_of_either(bench, run, tmp_path):
    early = msgspec.structs.replace(
        run("cut:one/8+exit", 0, 150.0, 10.0, 25.0),
        first_latency_ms={"p50": 8.0, "p95": 9.0, "p99": 10.0},
        fidelity_first=0.8,
    )
    accuracy = bench.encoders["toy"].accuracy | {"cut:one/8+exit": Accuracy(0.9, 0.8, 0.2, 40, 0.88, 0.75)}
    encoders = {"toy": msgspec.structs.replace(bench.encoders["toy"], accuracy=accuracy)}
    played = msgspec.structs.replace(bench, runs=[*bench.runs, early], encoders=encoders, fold=5)
    (ratio,) = ratios(played, "toy", "lte", "cut:one/8+exit")
    assert ratio.first_latency == 25.0
    assert ratio.latency == pytest.approx(200 / 150)
    assert ratio.both_saved == pytest.approx(1 - 11 / 101)
    cost = dict(zip(TIMES, times(played, "toy", "lte")[-1], strict=True))
    cost |= dict(zip(COSTS, costs(played, "toy", "lte")[-1], strict=True))
    assert [cost[name] for name in ("first p50", "first p99", "p50 ms", "first", "both ways")] == [
        "8", "10", "150", "25.00x", "-89.1%"
    ]  # fmt: skip
    worth = dict(zip(QUALITY, quality(played, "toy", "lte")[-1], strict=True))
    assert [worth[name] for name in ("fidelity", "of first", "head", "head first")] == [
        "0.9900",
        "0.8000",
        "0.880",
        "0.750",
    ]
    before = dict(zip(TIMES, times(played, "toy", "lte")[0], strict=True))  # a file from before exits
    assert (before["first p50"], before["first"]) == (before["p50 ms"], before["latency"])
    write_page(played, tmp_path / "proof.md")
    assert "Clips heard and judged are of fold 5" in (tmp_path / "proof.md").read_text()


def test_opus_and_the_device_alone_stand_beside_each_number(bench, run, tmp_path):
    more = [run("opus-16", 0, 100.0, 10.0, 25.0), run("device-only", 0, 20.0, 0.5, 40.0, "local")]
    played = msgspec.structs.replace(bench, runs=[*bench.runs, *more])
    found = {goal.name: goal.beside for goal in goals(played, "toy")}
    assert found["latency"] == ("2", "10")
    assert found["bytes saved"] == ("0.9", "0.995")
    assert found["energy saved"] == ("0.5", "0.2")
    assert {goal.beside for goal in goals(bench, "toy")} == {("", "")}
    write_page(played, tmp_path / "proof.md")
    page = (tmp_path / "proof.md").read_text()
    assert "| encoder | number, lte | paper | here | opus-16 | device-only | goal | made of |" in page
    assert "| toy | device-only | 0.50x | 0.50x |" in page


def test_the_page_says_how_the_link_was_made_whose_radio_it_has_and_what_was_slowed(bench, tmp_path):
    def page(what):
        write_page(what, tmp_path / "proof.md")
        return (tmp_path / "proof.md").read_text()

    def with_idle(what):
        return [row[COSTS.index("with idle")] for row in costs(what, "toy", "lte")]

    before = page(bench)  # a file of an earlier version
    assert "the Python around the blocks is not slowed" in before
    assert "receiving is not in it" in before
    assert set(with_idle(bench)) == {""}
    idle = [msgspec.structs.replace(r, energy_mj=r.energy_mj | {"idle": 1000.0}) for r in bench.runs]
    scenarios = {"lte": msgspec.structs.replace(bench.scenarios["lte"], link="lte")}
    now = msgspec.structs.replace(
        bench, link_is="a relay", python_factor=4.0, measured_by="device.json", runs=idle, scenarios=scenarios
    )
    after = page(now)
    assert "a link; radio: lte; made as a relay" in after
    assert "everything else it does takes 4 times as long as here" in after
    assert "times measured on such a device (device.json)" in after
    assert with_idle(now)[0] == "1050"


def test_a_file_survives_and_a_foreign_one_is_refused_by_field(bench, tmp_path):
    path = tmp_path / "bench.json"
    path.write_bytes(bench.to_json())
    assert read_bench(path) == bench
    path.write_text('{"format": "streamsplit.bench/2"}')
    with pytest.raises(FormatError, match="format"):
        read_bench(path)


def test_a_published_command_does_not_say_where_files_lie():
    assert command_of(["bench", "run", "lte", "--encoder", "/home/me/mn04.pt"]) == "ssc bench run lte --encoder mn04.pt"
    said = ["bench", "run", "--policy", "cut:one/8+exit", "-o", "/home/me/out"]
    assert command_of(said) == "ssc bench run --policy cut:one/8+exit -o out"
