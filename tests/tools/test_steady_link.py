"""On a link that does not change, a device's estimate stands and its cut stays."""

from __future__ import annotations

import numpy as np
import pytest

from tools.steady_link import SteadyLink, SteadyRun

RUNS_S = 120.0


@pytest.mark.parametrize("mbps", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("what", ["plain", "bunches", "download", "a late server"])
def test_an_estimate_is_within_a_factor_of_two_after_ten_seconds(mbps: float, what: str) -> None:
    link = {
        "plain": SteadyLink(mbps),
        "bunches": SteadyLink(mbps, bunch_s=0.093),
        "download": SteadyLink(mbps, download=(20.0, 60.0)),
        "a late server": SteadyLink(mbps, late_answers=0.3),
    }[what]
    frame_bytes = int(0.08 * mbps * 125_000)  # 80 ms on the way
    runs = [SteadyRun(link, seed, frame_bytes).run(RUNS_S) for seed in range(8)]

    assert max(run.worst_factor() for run in runs) <= 2.0


def test_a_time_that_bunches_hide_leaves_the_estimate_where_it_was() -> None:
    link = SteadyLink(2.0, bunch_s=0.187)
    medians = [np.median([mbps for _, mbps in SteadyRun(link, seed, 2_400).run(RUNS_S).estimates]) for seed in range(8)]

    assert max(medians) <= 4.0
    assert min(medians) >= 1.0
