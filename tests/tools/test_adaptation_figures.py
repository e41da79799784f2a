"""What the runs of adaptation say, against SciPy's bootstrap and by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from tools.adaptation_figures import by_stream, differences, gain, late_differences, section, worst_cells
from tools.adaptation_page import write_page

CLIPS = 40


def run(arm, right, kind="room", severity=3, seed=0, clean=1.0, shipped=0.4):
    random = np.random.default_rng([seed, severity, len(arm)])
    cell = {"kind": kind, "severity": severity, "order": "shuffled", "seed": seed, "arm": arm}
    chosen = {name: (random.permutation(CLIPS) < share * CLIPS).astype(int).tolist()
              for name, share in (("right", right), ("clean", clean))}  # fmt: skip
    return {"cell": cell, "shipped": shipped, "payload": 3000, "updates": 2, "windows": 60, **chosen}


def some_runs():
    found = []
    for seed in range(2):
        for severity in (1, 3, 5):
            for arm, right in (("unadapted", 0.5), ("joint", 0.75)):
                found.append(run(arm, right, severity=severity, seed=seed))
        for arm, right in (("chance", 0.7), ("half", 0.7), ("everything", 0.8)):
            found.append(run(arm, right, seed=seed, shipped=0.4 if arm != "everything" else 1.0))
    return found


def test_the_interval_is_that_of_a_bootstrap_over_clips():
    points = np.random.default_rng(0).normal(3, 20, (4, 200))
    found = gain(points, draws=9999)
    wanted = stats.bootstrap((points.mean(0),), np.mean, n_resamples=9999, method="percentile", rng=1)
    assert found.mean == pytest.approx(points.mean())
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.15)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.15)
    assert gain(points, 0.999).low < found.low


def test_arms_are_compared_clip_by_clip_on_the_streams_that_both_have():
    runs = some_runs()
    ours, chance = by_stream(runs, "joint"), by_stream(runs, "chance")
    points = differences(ours, chance)
    assert points.shape == (2, CLIPS), "chance was measured at severity 3 alone"
    first = next(stream for stream in ours if stream[1] == 3)
    wanted = 100 * (np.array(ours[first]["right"]) - np.array(chance[first]["right"]))
    np.testing.assert_array_equal(points[0], wanted)


def test_the_last_quarter_is_of_the_clips_that_were_heard_last():
    runs = [run("joint", 1.0), run("half", 1.0)]
    order = np.random.default_rng(0).permutation(CLIPS)
    for place in order[:30]:
        runs[1]["right"][place] = 0
    half = by_stream(runs, "half")
    assert late_differences(by_stream(runs, "joint"), half).tolist() == [[0.0] * 10]
    runs[1]["right"][order[-1]] = 0
    assert late_differences(by_stream(runs, "joint"), half).sum() == 100
    assert section([*runs, run("unadapted", 0.5)], 9, "").numbers["half_points_lost_late"] == pytest.approx(10)
    assert not late_differences(by_stream(runs, "joint"), {}).size


def test_figures_are_means_over_the_judged_severities():
    figures = section(some_runs(), 100, "python -m tools.bench_adapt").numbers
    assert figures["gain_severity_3_5"] == pytest.approx(25)
    assert figures["upload_all_gap"] == pytest.approx(5)
    assert figures["half_points_lost"] == figures["gain_over_chance"] == pytest.approx(5)
    assert figures["gain_over_chance_low"] < 5
    assert figures["clean_points_lost"] == 0
    assert figures["share_uploaded"] == pytest.approx(0.4)


def test_the_worst_stream_comes_first():
    runs = [*some_runs(), run("unadapted", 0.5, kind="low-pass"), run("joint", 0.25, kind="low-pass")]
    (kind, *_), worst = worst_cells(runs)[0]
    assert kind == "low-pass"
    assert worst.mean == pytest.approx(-25)
    assert section(runs, 100, "").numbers["worst_cell"] == pytest.approx(worst.high, abs=1e-4)


def test_nothing_measured_gives_no_figures():
    assert section([], 100, "").numbers == {}


def test_the_page_has_a_row_for_each_corruption_and_severity_and_a_picture(tmp_path):
    write_page(some_runs(), 100, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "**Measured so far: 18 of the 100 runs.**" in text
    assert "| room | 3 | 2 | 50.0 % | +25.0 (" in text
    assert "| 40 % | 50 B | 667 B |" in text, "3000 bytes up and two updates down, for 60 windows"
    assert "| everything | 2 | +30.0 (" in text
    assert (tmp_path / "adaptation-gains.svg").read_text().startswith("<?xml")


def test_what_real_processes_made_of_a_stream_has_a_row(tmp_path):
    write_page(some_runs(), 100, tmp_path / "page.md")
    assert "By real processes" not in (tmp_path / "page.md").read_text()
    cell = {"kind": "room", "severity": 3, "order": "shuffled", "seed": 0, "arm": "joint"}
    shares = {"processes": 0.75, "library": 0.8, "same": 0.9, "sent": 0.43, "library_sent": 0.44}
    one = {"cell": cell, "windows": 60, "lost": 0, "adaptation": {"sent": 7}, "own_head": False, **shares}
    (tmp_path / "adaptation-processes.json").write_text(json.dumps([one]))
    write_page(some_runs(), 100, tmp_path / "page.md")
    row = "| room 3, shuffled, seed 0 | joint, mapped | 75.0 % | 80.0 % | 90.0 % | 43 % | 44 % | 7 | 0 of 60 |"
    assert row in (tmp_path / "page.md").read_text()


def test_a_stream_that_changes_is_drawn_along_its_clips_and_has_no_row(tmp_path):
    runs = some_runs()
    for seed in range(2):
        for arm, right in (("unadapted", 0.5), ("joint", 0.75)):
            runs.append(run(arm, right, kind="changing", severity=4, seed=seed))
    runs = [one | {"right": one["right"] * 3, "clean": one["clean"] * 3} for one in runs]
    write_page(runs, 100, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "severity 4, mean of 2 seeds" in text
    assert "| changing |" not in text
    drawn = (tmp_path / "adaptation-over-time.svg").read_text()
    assert "<!-- babble -->" in drawn
    assert "<!-- joint -->" in drawn
