"""The page on objectives says what the runs say: equal steps, equal joules, the two bounds, what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.energy_page import at, best, joules, joules_until, section, thin_batches, write_page

ALL = ("neighbours", "virtual-negatives", "simclr", "moco", "simsiam", "barlow-twins")


def run(
    objective: str, batch: int, probes: list[float], taken: float, seed: int = 0, share: float = 1.0, idle: float = 1.0
) -> Any:
    """A run whose passes take `taken` J each above `idle` J, in ten steps."""
    points = [
        {
            "probe": probe,
            "knn": probe - 0.1,
            "steps": 10 * number,
            "joules": (taken + idle) * number,
            "above_idle_joules": taken * number,
            "source": "a meter",
        }
        for number, probe in enumerate(probes)
    ]
    return {
        "objective": objective,
        "batch": batch,
        "seed": seed,
        "share": share,
        "encoder": "net",
        "asked_of": 100,
        "points": points,
        "peak_memory": {"bytes": 100_000_000},
        "machine": {"date": f"2026-01-0{seed + 1}", "processor": "a processor"},
    }


def steps(point: dict[str, Any]) -> float:
    return float(point["steps"])


SIMCLR = run("simclr", 128, [0.1, 0.5, 0.7, 0.69], 100.0)
OURS = run("neighbours", 16, [0.1, 0.6, 0.695, 0.71], 40.0)
SLOW = run("neighbours", 16, [0.1, 0.2, 0.3, 0.65], 40.0)


def test_the_start_is_no_result_and_the_first_pass_that_reached_it_counts() -> None:
    assert best(run("simclr", 128, [0.9, 0.5, 0.6], 1.0)) == 0.6
    assert joules_until(SIMCLR, 0.69) == 200.0
    assert joules_until(SIMCLR, 0.8) is None


def test_a_run_is_not_charged_for_waiting_where_idle_power_is_known() -> None:
    waited = run("simclr", 128, [0.1, 0.5, 0.7], 100.0, idle=1e6)
    assert joules_until(waited, 0.7) == joules_until(SIMCLR, 0.7)
    assert joules({"joules": 5.0, "above_idle_joules": None}) == 5.0


def test_equal_steps_and_joules_are_read_off_one_trajectory() -> None:
    assert at(SIMCLR, steps, 20) == 0.7
    assert at(SIMCLR, joules, 199.0) == 0.5
    assert at(OURS, joules, 39.0) == 0.1


def test_the_bounds_compare_thin_batches_of_ours_with_large_ones_of_simclr_seed_by_seed() -> None:
    judged = thin_batches([SIMCLR, OURS])
    assert judged is not None
    assert judged.lost == pytest.approx([-1.0])
    assert judged.energy == pytest.approx([80.0 / 200.0]), "0.695 is within a point of 0.7"
    assert thin_batches([OURS]) is None
    assert section([SIMCLR, OURS], 60).numbers == {"thin_batch_points_lost": -1.0, "thin_batch_energy": 0.4}
    second = [run("simclr", 128, [0.1, 0.5], 100.0, seed=1), run("neighbours", 16, [0.1, 0.53], 20.0, seed=1)]
    both = thin_batches([SIMCLR, OURS, *second])
    assert both is not None
    assert both.lost == pytest.approx([-1.0, -3.0])
    assert both.mean_energy == pytest.approx(0.3)


def test_a_seed_that_never_got_there_leaves_no_figure_of_energy() -> None:
    judged = thin_batches([SIMCLR, SLOW])
    assert judged is not None
    assert judged.mean_energy is None
    assert section([SIMCLR, SLOW], 60).numbers == {"thin_batch_points_lost": 5.0}


def page(tmp_path: Path, *runs: Any) -> str:
    write_page(runs, 60, tmp_path / "energy.md")
    return (tmp_path / "energy.md").read_text()


def test_the_page_has_a_table_and_a_picture_a_regime_and_says_what_is_missing(tmp_path: Path) -> None:
    other = run("simclr", 128, [0.1, 0.5, 0.8], 100.0, seed=1)
    thin = run("simclr", 16, [0.1, 0.4], 10.0, share=0.25)
    text = page(tmp_path, SIMCLR, other, OURS, thin)
    assert "**Measured so far: 4 of the 60 runs of the study.**" in text
    assert "- Joules: a meter." in text
    assert text.count("Measured on: processor a processor.") == 1
    assert "| probe after 20 steps | probe after 120 J |" in text
    assert "| simclr | 128 | 2 | 10.00 | 75.0 % (70.0 to 80.0) | 50.0 % (50.0 to 50.0) |" in text
    assert "## net, 25 % of the windows" in text
    assert {path.name for path in tmp_path.glob("*.svg")} == {"energy-net-1.svg", "energy-net-0.25.svg"}
    assert "(energy-net-1.svg)" in text


def test_the_page_says_whether_a_bound_is_met(tmp_path: Path) -> None:
    assert "-1.0 points lost (by seed -1.0); the bound of 1 is met." in page(tmp_path, SIMCLR, OURS)
    text = page(tmp_path, SIMCLR, SLOW)
    assert "+5.0 points lost (by seed +5.0); the bound of 1 is **missed**." in text
    assert "a seed never gets there (by seed never); the bound of 0.6 is **missed**." in text


@pytest.mark.integration
def test_the_published_ordering_is_judged_where_all_objectives_were_measured(tmp_path: Path) -> None:
    others = [run(name, 16, [0.1, 0.4, 0.6], 10.0 + number) for number, name in enumerate(ALL)]
    text = page(tmp_path, *others)
    assert "until 60.0 %, which all reach, neighbours 20 J, virtual-negatives 22 J, simclr 24 J" in text
    assert "That SimCLR takes the least does not hold here." in text
    assert "That SimCLR" not in page(tmp_path, *others[1:])


def test_before_anything_can_be_compared_the_page_says_so(tmp_path: Path) -> None:
    assert "- Nothing yet: no two arms" in page(tmp_path, SIMCLR)
    assert "- Nothing yet" not in page(tmp_path, SIMCLR, OURS)
