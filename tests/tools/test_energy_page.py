"""The page on objectives says what the runs say: equal steps, equal joules, the two bounds, what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.energy_page import at, best, joules_until, section, thin_batches, write_page


def run(objective: str, batch: int, probes: list[float], joules: float, seed: int = 0, share: float = 1.0) -> Any:
    """A run whose passes take `joules` each, in ten steps."""
    points = [
        {
            "probe": probe, "knn": probe - 0.1, "steps": 10 * number, "joules": joules * number, "source": "a meter",
            "joules_a_step": joules / 10 if number else None, "above_idle_a_step": joules / 20 if number else None,
        }
        for number, probe in enumerate(probes)
    ]  # fmt: skip
    return {
        "objective": objective, "batch": batch, "seed": seed, "share": share, "encoder": "net",
        "points": points, "peak_memory": {"bytes": 100_000_000},
    }  # fmt: skip


SIMCLR = run("simclr", 128, [0.1, 0.5, 0.7, 0.69], 100.0)
OURS = run("virtual-negatives", 16, [0.1, 0.6, 0.695, 0.71], 40.0)
SLOW = run("virtual-negatives", 16, [0.1, 0.2, 0.3, 0.65], 40.0)


def test_the_start_is_no_result_and_the_first_pass_that_reached_it_counts() -> None:
    assert best(run("simclr", 128, [0.9, 0.5, 0.6], 1.0)) == 0.6
    assert joules_until(SIMCLR, 0.69) == 200.0
    assert joules_until(SIMCLR, 0.8) is None


def test_equal_steps_and_joules_are_read_off_one_trajectory() -> None:
    assert at(SIMCLR, "steps", 20) == 0.7
    assert at(SIMCLR, "joules", 199.0) == 0.5
    assert at(OURS, "joules", 39.0) == 0.1


def test_the_bounds_compare_thin_batches_of_ours_with_large_ones_of_simclr() -> None:
    lost, energy = thin_batches([SIMCLR, OURS])
    assert lost == pytest.approx(-1.0)
    assert energy == pytest.approx(80.0 / 200.0), "0.695 is within a point of 0.7"
    assert thin_batches([SIMCLR, SLOW])[1] is None
    assert thin_batches([OURS]) is None
    assert section([SIMCLR, OURS]).numbers == {"thin_batch_points_lost": -1.0, "thin_batch_energy": 0.4}
    assert section([SIMCLR, SLOW]).numbers == {"thin_batch_points_lost": 5.0}


def test_the_page_has_a_table_and_a_picture_a_regime_and_says_what_is_missing(tmp_path: Path) -> None:
    other = run("simclr", 128, [0.1, 0.5, 0.8], 100.0, seed=1)
    thin = run("simclr", 16, [0.1, 0.4], 10.0, share=0.25)
    write_page([SIMCLR, other, OURS, thin], 60, tmp_path / "energy.md")
    text = (tmp_path / "energy.md").read_text()
    assert "**4 of the 60 runs of the study have been measured.**" in text
    assert "Joules are counted by: a meter." in text
    assert "| probe after 20 steps | probe after 120 J |" in text
    assert "| simclr | 128 | 2 | 10.00 | 5.00 | 75.0 % (70.0 to 80.0) | 50.0 % (50.0 to 50.0) |" in text
    assert "## net, 25% of the windows" in text
    assert {path.name for path in tmp_path.glob("*.svg")} == {"energy-net-1.svg", "energy-net-0.25.svg"}
    assert "(energy-net-1.svg)" in text
