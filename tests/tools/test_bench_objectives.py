"""The study of objectives: its runs, how it goes on, and one run in small."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from runtime_edge.errors import UsageError
from runtime_server.training.losses.objectives import OBJECTIVES
from tools import bench_objectives
from tools.bench_objectives import SMALL, Arm, KeptRuns, arms, main, measure_all, measured


def settings(tmp_path: Path, **more: object) -> argparse.Namespace:
    given = {
        "audio": tmp_path,
        "kept": tmp_path / "kept.jsonl",
        "hours": 1.0,
        "quick": True,
        "meter": "rpi4",
        "jobs": 1,
    }
    return argparse.Namespace(**given | more)


def test_the_study_has_every_objective_share_and_batch_from_three_seeds() -> None:
    every = arms()
    assert len(set(every)) == len(every)
    grid = Counter((arm.objective, arm.share, arm.batch) for arm in every if arm.encoder == SMALL)
    for objective in OBJECTIVES:
        for share in (1.0, 0.25):
            for batch in (16, 128):
                assert grid[objective, share, batch] == 3
        assert grid[objective, 0.5, 16] == grid[objective, 0.1, 16] == 1
    assert len({arm.encoder for arm in every}) == 4


def test_what_the_bounds_are_about_comes_first() -> None:
    assert [(arm.objective, arm.batch, arm.seed) for arm in arms()[:6]] == [
        (objective, batch, seed) for seed in range(3) for objective, batch in (("simclr", 128), ("neighbours", 16))
    ]
    assert {arm.share for arm in arms()[:6]} == {1.0}


def test_what_is_kept_is_not_measured_again_and_nothing_is_begun_after_the_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, now = [], [0.0]

    def fake(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        arm = json.loads(command[command.index("--arm") + 1])
        began.append(arm["seed"])
        now[0] += 1500.0
        return subprocess.CompletedProcess(command, 0, json.dumps({**arm, "points": [{"probe": 0.5}]}) + "\n")

    monkeypatch.setattr(bench_objectives.subprocess, "run", fake)
    wanted = [Arm("simclr", 1.0, 16, seed) for seed in range(6)]
    published = tmp_path / "published.jsonl"
    KeptRuns([published]).add([{**asdict(wanted[1]), "points": []}])
    kept = KeptRuns([published, tmp_path / "new" / "kept.jsonl"])

    measure_all(settings(tmp_path), wanted, kept, lambda: now[0])
    assert began == [0, 2, 3]
    measure_all(settings(tmp_path), wanted, kept, lambda: now[0])
    assert began == [0, 2, 3, 4, 5]
    assert set(kept.read()) == set(wanted)
    assert len(published.read_text().splitlines()) == 1


@pytest.mark.parametrize("line", ["{", "[]", '{"objective": "simclr"}'])
def test_a_line_that_is_no_run_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "kept.jsonl"
    KeptRuns([file]).add([asdict(Arm("simclr", 1.0, 16, 0))])
    with file.open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(UsageError, match=r"kept\.jsonl:2: not a run of this study"):
        KeptRuns([file]).read()


def test_without_recordings_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SSC_TEST_AUDIO", raising=False)
    main([])
    assert "left out: --audio" in capsys.readouterr().out


def test_runs_beside_each_other_are_refused_where_one_counter_has_them_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--jobs 2: rapl would count all runs together"):
        main(["--audio", str(tmp_path), "--jobs", "2", "--meter", "rapl"])


@pytest.mark.integration
def test_a_run_in_small_has_a_point_before_and_after_each_pass(two_words: Path) -> None:
    found = measured(Arm("simclr", 1.0, 16, 0), settings(two_words))

    before, after = found["points"]
    assert before["steps"] == before["joules"] == 0
    assert after["steps"] > 0
    assert after["joules"] > 0
    assert "rpi4" in after["source"]
    assert after["probe"] > 0.5, "the two kinds are far apart"
    assert found["peak_memory"]["bytes"] > 0
    assert found["asked_of"] == 16
