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
    runs = {"before", "after", "task", *names} - {"hybrid, sparse", "task, sparse"}
    lines = []
    for start in STARTS:
        for run in runs:
            window = windows.get((start.name, run), 0.5)
            probed = {"clip": 0.0, "window": window, "clip_all": 0.0, "window_all": 0.0}
            lines.append(json.dumps({"key": [start.name, 0, run], "probed": probed}))
    file.write_text("\n".join(lines) + "\n")
    return ProbedRuns(file)


def test_each_term_is_compared_from_both_starts_with_all_windows_and_with_a_quarter(tmp_path: Path) -> None:
    found = kept_probes(
        tmp_path / "kept.jsonl",
        {("random", "hybrid, dense"): 0.74, ("random", "after"): 0.71, ("room", "task, dense"): 0.8},
    )
    *_, section = LearningBench(NOTHING, tmp_path, tmp_path, False, found, [0]).ablation(STARTS)

    names = {term.removeprefix("task+") for term in ABLATION}
    assert names == {"task", "sw", "laplacian", "mse", "kl", "mmd", "hybrid"}
    for group in ("terms", "terms_drop", "terms_room", "terms_drop_room"):
        assert {name for name in names if f"{group}.{name}" in section.numbers} == names
    assert section.numbers["terms.hybrid"] == 0.74
    assert section.numbers["terms_drop.hybrid"] == pytest.approx(0.03)
    assert section.numbers["terms_drop_room.task"] == pytest.approx(0.3)
