"""The choice on the device: the best allowed cut, steadily, with probes, never above the privacy floor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from runtime_edge.errors import TableError
from runtime_edge.splitter import UNCERTAINTY_SMOOTHING, Decision, Splitter
from runtime_edge.table import LOCAL, Reward, SplitterTable, StateAxis, StateName, cuts_digest

CUTS = ["waveform", "layer1", "layer2", "embedding"]


def make(
    q: tuple[tuple[float, ...], ...],
    axis: StateName = "bandwidth_mbps",
    edges: tuple[float, ...] = (1.0,),
    **changes: Any,
) -> SplitterTable:
    fields: dict[str, Any] = {
        "target": "rpi4",
        "encoder": "resnet18",
        "created_by": "test",
        "actions": (*CUTS, LOCAL),
        "action_bytes": (32000, 16000, 8000, 256, 0),
        "state": (StateAxis(name=axis, edges=edges),),
        "reward": Reward(),
        "hysteresis": 0.5,
        "probe_rate": 0.0,
        "costs_digest": "sha256:" + "0" * 64,
        "bundle_cuts": cuts_digest(CUTS),
        "metrics": {},
        "policy": tuple(row.index(max(row)) for row in q),
        "q": q,
    }
    return SplitterTable(**(fields | changes))


SLOW_LOCAL_FAST_WAVEFORM = ((0.0, 1.0, 2.0, 3.0, 4.0), (9.0, 8.0, 7.0, 6.0, 5.0))


def test_each_state_gets_the_best_action_of_its_row() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM), CUTS)
    assert splitter.choose(0.5, 0.1, 0.5, 80.0) == Decision(LOCAL, 4, 0, False)
    assert splitter.choose(0.5, 0.1, 5.0, 80.0) == Decision("waveform", 0, 1, False)


def test_a_better_cut_within_the_margin_does_not_change_the_choice() -> None:
    table = make(((1.0, 0.0, 0.0, 0.0, 0.0), (1.0, 1.4, 0.0, 0.0, 0.0), (1.0, 1.6, 0.0, 0.0, 0.0)), edges=(1.0, 2.0))
    splitter = Splitter(table, CUTS)
    chosen = [splitter.choose(None, 0.1, mbps, 80.0).cut for mbps in (0.5, 1.5, 0.5, 2.5, 1.5, 0.5)]
    assert chosen == ["waveform", "waveform", "waveform", "layer1", "layer1", "waveform"]
    fresh = Splitter(table, CUTS)
    assert fresh.choose(None, 0.1, 1.5, 80.0).cut == "layer1"  # with nothing chosen yet the best is taken


def test_uncertainty_is_smoothed_and_starts_at_one() -> None:
    table = make(((1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0)), axis="uncertainty", edges=(0.6,), hysteresis=0)
    splitter = Splitter(table, CUTS)
    assert splitter.choose(None, 0.1, 1.0, 80.0).row == 1
    assert splitter.choose(math.nan, 0.1, 1.0, 80.0).row == 1
    rows = [splitter.choose(0.0, 0.1, 1.0, 80.0).row for _ in range(3)]
    assert rows == [1, 0, 0]
    assert splitter.uncertainty == pytest.approx((1 - UNCERTAINTY_SMOOTHING) ** 3)


def test_the_privacy_floor_masks_the_best_action_and_every_probe() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, probe_rate=0.2), CUTS, min_cut_index=2)
    decisions = [splitter.choose(0.5, 0.1, 50.0, 80.0) for _ in range(500)]
    assert {decision.cut for decision in decisions} == {"layer2"}
    local = [splitter.choose(0.5, 0.1, 0.9, 80.0) for _ in range(500)]
    assert {decision.cut for decision in local} == {"layer2", "embedding", LOCAL}
    assert all(decision.probe == (decision.cut != LOCAL) for decision in local)


def test_a_floor_that_leaves_nothing_is_refused() -> None:
    table = make(((1.0, 0.0),) * 2, actions=("waveform", "layer1"), action_bytes=(2, 1))
    with pytest.raises(TableError, match="privacy floor, cut 2"):
        Splitter(table, CUTS, min_cut_index=2)


def test_a_mask_for_a_link_that_is_down() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, probe_rate=0.2), CUTS)
    down = [False, False, False, False, True]
    assert {splitter.choose(0.5, 0.1, 5.0, 80.0, allowed=down) for _ in range(100)} == {Decision(LOCAL, 4, 1, False)}
    assert splitter.choose(0.5, 0.1, 5.0, 80.0, allowed=[False] * 5) == Decision(LOCAL, -1, 1, False)


def test_probes_are_earlier_cuts_whose_transfer_fits() -> None:
    table = make(((0.0, 0.0, 0.0, 0.0, 9.0), (0.0, 0.0, 9.0, 0.0, 0.0)), probe_rate=0.2)
    splitter = Splitter(table, CUTS, seed=3)
    # 0.5 Mbit/s for at most 200 ms is 12 500 bytes; at 5 Mbit/s everything fits.
    slow = [splitter.choose(0.5, 0.1, 0.5, 80.0) for _ in range(4000)]
    assert {decision.cut for decision in slow if decision.probe} == {"layer2", "embedding"}
    assert {decision.cut for decision in slow if not decision.probe} == {LOCAL}
    assert np.mean([decision.probe for decision in slow]) == pytest.approx(0.2, abs=0.03)
    fast = [splitter.choose(0.5, 0.1, 5.0, 80.0) for _ in range(4000)]
    assert {decision.cut for decision in fast if decision.probe} == {"waveform", "layer1"}
    assert {decision.cut for decision in fast if not decision.probe} == {"layer2"}


def test_the_same_seed_probes_the_same_windows() -> None:
    table = make(((0.0, 0.0, 0.0, 0.0, 9.0),) * 2, probe_rate=0.2)
    first, second, other = (Splitter(table, CUTS, seed=seed) for seed in (1, 1, 2))
    histories = [[s.choose(0.5, 0.1, 9.0, 80.0) for _ in range(200)] for s in (first, second, other)]
    assert histories[0] == histories[1] != histories[2]


def test_unknown_conditions_count_as_bad() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM), CUTS)
    assert splitter.choose(0.5, math.nan, math.nan, math.nan).row == 0
    loaded = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, axis="cpu"), CUTS)
    assert loaded.choose(0.5, math.nan, 1.0, 80.0).row == 1


def test_state_variables_beyond_the_four_are_passed_or_missed_by_name() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, axis="temperature_c", edges=(70.0,)), CUTS)
    assert splitter.choose(0.5, 0.1, 1.0, 80.0, extra={"temperature_c": 75.0}).row == 1
    with pytest.raises(TableError, match="temperature_c"):
        splitter.choose(0.5, 0.1, 1.0, 80.0)


def test_a_swap_holds_from_the_next_window_and_a_bad_one_changes_nothing() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM), CUTS)
    splitter.choose(0.0, 0.1, 5.0, 80.0)
    known = splitter.uncertainty
    swapped = make(((0.0, 0.0, 0.0, 5.0, 0.0),) * 2)
    splitter.swap(swapped)
    assert splitter.table is swapped
    assert splitter.choose(None, 0.1, 5.0, 80.0).cut == "embedding"
    assert splitter.uncertainty == known
    with pytest.raises(TableError, match="other cuts"):
        splitter.swap(make(SLOW_LOCAL_FAST_WAVEFORM, bundle_cuts=cuts_digest(["a"])))
    assert splitter.table is swapped
    assert splitter.choose(None, 0.1, 5.0, 80.0).cut == "embedding"
