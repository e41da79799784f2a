"""The ablation goes on from what is kept, and says what each term costs where windows are missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools.bench_learning import ABLATION, STARTS, LearningBench, ProbedRuns
from tools.esc10 import Clips

NOTHING = Clips(np.zeros((0, 1), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))


def kept_probes(file: Path, windows: dict[tuple[str, str], float]) -> ProbedRuns:
    """One seed's probes of every run of the ablation; those that are not given are 0.5."""
    names = [f"{term}, {arm}" for term in ABLATION for arm in ("dense", "sparse")]
    # What the benchmark measures anyway is not measured again.
    runs = {"before", "task", "hybrid", *names} - {"hybrid, sparse", "task, sparse"}
    lines = []
    for start in STARTS:
        for run in runs:
            window = windows.get((start.name, run), 0.5)
            probed = {"clip": 0.0, "window": window, "clip_all": 0.0, "window_all": 0.0}
            lines.append(json.dumps({"key": [start.name, 0, run], "probed": probed}))
    file.write_text("\n".join(lines) + "\n")
    return ProbedRuns(file)


def test_what_a_quarter_of_the_windows_loses_against_raw_audio_is_of_the_same_loss(tmp_path: Path) -> None:
    right = {
        "before": 0.3,
        "task": 0.5,
        "task, raw": 0.53,
        "hybrid": 0.4,
        "hybrid, raw": 0.9,
        "sw": 0.2,
        "laplacian": 0.1,
    }
    lines = [
        json.dumps(
            {
                "key": [start.name, seed, arm],
                "probed": dict.fromkeys(("clip", "window", "clip_all", "window_all"), share),
            }
        )
        for start in STARTS
        for seed in range(2)
        for arm, share in right.items()
    ]
    (tmp_path / "kept.jsonl").write_text("\n".join(lines))
    bench = LearningBench(NOTHING, tmp_path, tmp_path, False, ProbedRuns(tmp_path / "kept.jsonl"), [0, 1])
    *_, learning, gap = bench.learning(STARTS)
    for start in ("random", "room", "random_clips", "room_clips"):
        assert gap.numbers[f"raw_gap.{start}"] == pytest.approx(0.03)
        assert learning.numbers[f"probe_after.{start}"] == 0.5
    assert gap.name == "objectives.raw"


def test_each_term_is_compared_from_both_starts_with_all_windows_and_with_a_quarter(tmp_path: Path) -> None:
    found = kept_probes(
        tmp_path / "kept.jsonl",
        {("random", "hybrid, dense"): 0.74, ("random", "hybrid"): 0.71, ("room", "task, dense"): 0.8},
    )
    *_, section = LearningBench(NOTHING, tmp_path, tmp_path, False, found, [0]).ablation(STARTS)

    names = {term.removeprefix("task+") for term in ABLATION}
    assert names == {"task", "sw", "laplacian", "mse", "kl", "mmd", "hybrid"}
    for group in ("terms", "terms_drop", "terms_room", "terms_drop_room"):
        assert {name for name in names if f"{group}.{name}" in section.numbers} == names
    assert section.numbers["terms.hybrid"] == 0.74
    assert section.numbers["terms_drop.hybrid"] == pytest.approx(0.03)
    assert section.numbers["terms_drop_room.task"] == pytest.approx(0.3)
