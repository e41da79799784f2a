"""Rows in which cutting pays, on benches whose figures can be worked out by hand."""

import msgspec
import pytest

from runtime_server.lab.accuracy import Accuracy
from runtime_server.lab.policy_bench import PlayedScenario
from runtime_server.lab.proof.goals import prompt_goals, thrifty_goals
from runtime_server.lab.proof.proof_page import write_page
from runtime_server.lab.proof.wins import best_other, reward_of, rows


@pytest.fixture
def with_device(bench, run):
    """`with_device(60.0, 40.0)`: the bench and the device alone, so fast and for so much energy; the table lost so
    much.
    """

    def made(latency, energy, lost=0.0):
        heads = {
            "device-only": Accuracy(0.9, 0.8, 0.2, 40, 0.9, 0.9),
            "lte/table": Accuracy(0.9, 0.8, 0.2, 40, 0.9 - lost),
        }
        encoders = {
            "toy": msgspec.structs.replace(bench.encoders["toy"], accuracy=bench.encoders["toy"].accuracy | heads)
        }
        runs = [*bench.runs, run("device-only", 0, latency, 0.5, energy, "local")]
        return msgspec.structs.replace(bench, runs=runs, encoders=encoders)

    return made


def test_a_row_wins_by_reward_and_by_two_of_four_and_before_the_device(with_device, tmp_path):
    (row,) = rows(with_device(60.0, 40.0))
    assert row.wins
    assert row.rewards[0.5]["table"] == pytest.approx(9.9 - 1.0 - 0.6)
    assert best_other(row.rewards[0.5]) == ("device-only", pytest.approx(9.9 - 1.5 - 1.2))
    write_page(with_device(60.0, 40.0), tmp_path / "proof.md", notes=["Not played: another."])
    page = (tmp_path / "proof.md").read_text()
    assert "The table pays in 1 of 1 rows." in page
    assert "\n- Not played: another.\n" in page
    rewards = " | ".join(["8.30; device-only 7.20"] * 3)
    assert f"| toy | lte | {rewards} | 0.0; unknown | **yes** |" in page


@pytest.mark.parametrize(
    ("latency", "energy", "lost", "reason"),
    [
        (10.0, 30.0, 0.0, "reward 8.30, device-only 8.75"),
        (30.0, 90.0, 0.0, "better than device-only in energy only"),
        (60.0, 40.0, 0.02, "2.00 points lost"),
    ],
)
def test_why_a_row_does_not_win_is_told(with_device, latency, energy, lost, reason):
    (row,) = rows(with_device(latency, energy, lost))
    assert not row.wins
    assert reason in row.reasons


def test_a_point_of_accuracy_makes_up_for_a_device_that_is_faster(with_device):
    assert rows(with_device(30.0, 90.0, lost=-0.02))[0].wins


def test_points_of_many_clips_count_by_what_made_the_answers(with_device):
    played = with_device(60.0, 40.0)
    (row,) = rows(played, {"toy": {"one": 1.5}})
    assert row.reasons == ("1.50 points lost",)
    assert rows(played, {"toy": {"one": 0.5}})[0].wins  # the device alone runs the whole encoder
    assert rows(played, {"toy": {"two": 0.5}})[0].reasons == ("accuracy was not measured",)


def test_the_first_answers_lose_points_of_their_own(with_device):
    played = with_device(60.0, 40.0)
    early = [msgspec.structs.replace(run, first_answers=["one+exit"], final_answers=["one"]) for run in played.runs]
    (row,) = rows(msgspec.structs.replace(played, runs=early), {"toy": {"one": 0.5, "one+exit": 9.0}})
    assert (row.lost, row.lost_first) == (0.5, 9.0)
    assert row.wins, "last answers count"


def test_a_run_that_is_short_beside_the_radios_tail_tells_nothing(with_device):
    played = with_device(60.0, 40.0)
    scenarios = {"lte": PlayedScenario("a link", [], "lte")}
    (row,) = rows(msgspec.structs.replace(played, scenarios=scenarios))
    assert row.reasons == ("runs are too short to tell: the radio stays awake for 11.6 s from before their begin",)
    assert rows(msgspec.structs.replace(played, scenarios=scenarios, seconds=120.0))[0].wins


def test_without_the_device_alone_nothing_is_compared(bench):
    assert rows(bench) == []


def test_what_the_first_answer_counts_decides_of_the_reward(bench, run):
    early = msgspec.structs.replace(
        run("table", 0, 150.0, 10.0, 20.0), first_latency_ms={"p50": 10.0, "p95": 11.0, "p99": 12.0}, fidelity_first=0.8
    )
    assert reward_of([early], 1.0) == pytest.approx(8.0 - 0.25 - 0.6)
    assert reward_of([early], 0.0) == pytest.approx(9.9 - 3.75 - 0.6)


def test_a_prompt_and_a_thrifty_row_are_held_to_their_numbers(with_device, run):
    early = msgspec.structs.replace(
        run("cut:one/8+exit", 0, 90.0, 4.0, 10.0), first_latency_ms={"p50": 20.0, "p95": 21.0, "p99": 22.0}
    )
    played = with_device(60.0, 40.0)
    played = msgspec.structs.replace(played, runs=[*played.runs, run("opus-16", 0, 100.0, 12.0, 25.0), early])
    found = {goal.name: goal for goal in prompt_goals(played, "toy", "lte", "cut:one/8+exit")}
    assert {name: round(goal.value, 3) for name, goal in found.items()} == {
        "latency_first": 10.0, "latency_final_vs_opus": 0.9, "bytes_saved": 0.95
    }  # fmt: skip
    assert all(goal.met for goal in found.values())
    found = {goal.name: goal for goal in thrifty_goals(played, "toy", "lte", "cut:one/8+exit")}
    assert {name: round(goal.value, 3) for name, goal in found.items()} == {
        "energy_saved": 0.8, "energy_vs_device_only": 0.25
    }  # fmt: skip
    assert found["energy_saved"].beside == ("0.5", "0.2")
    assert prompt_goals(played, "toy", "wifi", "cut:one/8+exit") == []
    assert thrifty_goals(with_device(60.0, 40.0), "toy", "lte", "none") == []
