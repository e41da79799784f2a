"""The choice on the device: the best allowed cut, steadily, with exploration, never above the privacy floor."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from small_tables import CUTS
from small_tables import make_table as make

from runtime_edge.errors import TableError
from runtime_edge.formats.records.table import LOCAL, Limits, StateAxis, cuts_digest
from runtime_edge.policy.splitter import LOOK_SHARE, UNCERTAINTY_SMOOTHING, Decision, Splitter

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


def test_the_privacy_floor_masks_the_best_action_and_every_exploration() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, probe_rate=0.2), CUTS, min_cut_index=2)
    decisions = [splitter.choose(0.5, 0.1, 50.0, 80.0) for _ in range(500)]
    assert {decision.cut for decision in decisions} == {"layer2"}
    local = [splitter.choose(0.5, 0.1, 0.9, 80.0) for _ in range(500)]
    assert {decision.cut for decision in local} == {"layer2", "embedding", LOCAL}
    assert all(decision.explored == (decision.cut != LOCAL) for decision in local)


def test_a_floor_that_leaves_nothing_is_refused() -> None:
    table = make(((1.0, 0.0),) * 2, names=("waveform", "layer1"), sizes=(2, 1))
    with pytest.raises(TableError, match="privacy floor, cut 2"):
        Splitter(table, CUTS, min_cut_index=2)


def test_while_the_link_is_down_the_smallest_frame_that_teaches_is_spooled() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, probe_rate=0.2), CUTS)
    down = {splitter.choose(0.5, 0.1, 5.0, 80.0, connected=False) for _ in range(100)}
    assert down == {Decision("layer2", 2, 1, False)}
    floored = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM), CUTS, min_cut_index=3)
    assert floored.choose(0.5, 0.1, 5.0, 80.0, connected=False).cut == "embedding"
    nothing_ships = Splitter(make(((1.0,),) * 2, names=(LOCAL,), sizes=(0,)), CUTS)
    assert nothing_ships.choose(0.5, 0.1, 5.0, 80.0, connected=False).cut == LOCAL


def test_a_bin_is_left_only_well_past_its_edge() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, dead_band=0.1), CUTS)
    mbps = (0.95, 1.05, 1.09, 1.11, 1.05, 0.95, 0.91, 0.89, 1.0, 5.0)
    assert [splitter.choose(None, 0.1, value, 80.0).row for value in mbps] == [0, 0, 0, 1, 1, 1, 1, 0, 0, 1]


def test_a_bin_of_the_round_trip_is_left_only_past_its_jitter() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, axis="rtt_ms", edges=(30.0,), dead_band=0.1), CUTS)
    rtt_ms = (28.0, 34.0, 36.0, 26.0, 24.0)  # a tenth of the edge would be 3 ms
    assert [splitter.choose(None, 0.1, 1.0, value).row for value in rtt_ms] == [0, 0, 1, 1, 0]


def test_what_cannot_end_a_dwell_has_no_dead_band() -> None:
    splitter = Splitter(
        make(SLOW_LOCAL_FAST_WAVEFORM, axis="uncertainty", edges=(0.5,), dead_band=0.1), CUTS, uncertainty_smoothing=1.0
    )
    assert [splitter.choose(value, 0.1, 1.0, 80.0).row for value in (0.49, 0.51, 0.49)] == [0, 1, 0]


def test_a_dead_band_is_narrow_enough_for_a_jump_over_several_bins() -> None:
    table = make(tuple((float(i), 0.0, 0.0, 0.0, 0.0) for i in range(5)), edges=(1.0, 2.0, 4.0, 8.0), dead_band=0.2)
    splitter = Splitter(table, CUTS)
    assert [splitter.choose(None, 0.1, value, 80.0).row for value in (0.5, 9.7, 7.9, 4.1, 0.1)] == [0, 4, 4, 3, 0]


def test_after_a_change_a_cut_is_kept_for_the_dwell_unless_link_or_load_move() -> None:
    axes = (StateAxis(name="uncertainty", edges=(0.5,)), StateAxis(name="cpu", edges=(0.5,)))
    q = tuple(tuple(9.0 * (action == best) for action in range(5)) for best in (0, 1, 2, 3))
    splitter = Splitter(make(q, state=axes, dwell=4, hysteresis=0.0), CUTS, uncertainty_smoothing=1.0)

    def actions(*states: tuple[float, float]) -> list[int]:
        return [splitter.choose(uncertainty, cpu, 1.0, 80.0).action for uncertainty, cpu in states]

    sure, unsure = (0.1, 0.1), (0.9, 0.1)
    assert actions(sure, unsure, unsure, unsure, unsure, sure, sure, sure, sure) == [0, 0, 0, 0, 2, 2, 2, 2, 0]
    assert actions(unsure, (0.9, 0.9), (0.1, 0.9), (0.1, 0.1)) == [0, 3, 3, 0]


def test_a_link_that_wavers_between_two_bins_changes_the_cut_once_a_minute() -> None:
    edges = tuple(float(edge) for edge in range(1, 12))
    q = tuple(tuple(9.0 * (action == (place >= 6)) for action in range(5)) for place in range(12))
    splitter = Splitter(make(q, edges=edges, dwell=2, hysteresis=0.0, dead_band=0.0), CUTS)
    wavering = [splitter.choose(None, 0.1, 5.5 + (index // 4 % 2), 80.0).action for index in range(480)]
    changes = [index for index in range(1, 480) if wavering[index] != wavering[index - 1]]
    hop_s = splitter.table.hop_s
    assert len(changes) >= 2
    assert all(later - earlier >= 60.0 / hop_s for earlier, later in itertools.pairwise(changes))
    assert splitter.choose(None, 0.1, 11.0, 80.0).action == 1
    assert [splitter.choose(None, 0.1, 1.5, 80.0).action for _ in range(3)][-1] == 0, "a step is followed at once"


def test_a_move_of_the_round_trip_ends_a_dwell() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, axis="rtt_ms", edges=(50.0,), dwell=100), CUTS)
    assert [splitter.choose(None, 0.1, 1.0, rtt_ms).action for rtt_ms in (20.0, 80.0, 20.0)] == [4, 0, 4]


def test_it_looks_for_a_faster_link_only_where_one_would_change_the_choice_and_by_what_that_would_gain() -> None:
    small, large = (0.0, 0.0, 0.0, 5.0, 0.0), (0.0, 5.0, 0.0, 0.0, 0.0)
    table = make((small, small, large, large), edges=(1.0, 2.0, 4.0), dead_band=0.1)
    splitter = Splitter(table, CUTS)
    assert splitter.filler_worth() == 0.0  # before the first window
    splitter.choose(None, 0.1, 0.5, 80.0)
    mj_a_byte = table.uplink.mj_per_kb / 1000 + table.uplink.transmit_w * 8 / (0.5 * 1000)
    price = table.reward.eta * mj_a_byte / table.reward.e_budget_mj
    assert splitter.filler_worth() == pytest.approx(LOOK_SHARE * 5.0 / price)
    splitter.choose(None, 0.1, 3.0, 80.0)
    assert splitter.filler_worth() == 0.0
    assert Splitter(make((small, large), axis="cpu"), CUTS).filler_worth() == 0.0


def test_exploration_takes_earlier_cuts_whose_transfer_fits() -> None:
    table = make(((0.0, 0.0, 0.0, 0.0, 9.0), (0.0, 0.0, 9.0, 0.0, 0.0)), probe_rate=0.2)
    splitter = Splitter(table, CUTS, seed=3)
    # 0.5 Mbit/s for at most 200 ms is 12 500 bytes; at 5 Mbit/s everything fits.
    slow = [splitter.choose(0.5, 0.1, 0.5, 80.0) for _ in range(4000)]
    assert {decision.cut for decision in slow if decision.explored} == {"layer2", "embedding"}
    assert {decision.cut for decision in slow if not decision.explored} == {LOCAL}
    assert np.mean([decision.explored for decision in slow]) == pytest.approx(0.2, abs=0.03)
    fast = [splitter.choose(0.5, 0.1, 5.0, 80.0) for _ in range(4000)]
    assert {decision.cut for decision in fast if decision.explored} == {"waveform", "layer1"}
    assert {decision.cut for decision in fast if not decision.explored} == {"layer2"}


def test_the_same_seed_explores_in_the_same_windows() -> None:
    table = make(((0.0, 0.0, 0.0, 0.0, 9.0),) * 2, probe_rate=0.2)
    first, second, other = (Splitter(table, CUTS, seed=seed) for seed in (1, 1, 2))
    histories = [[s.choose(0.5, 0.1, 9.0, 80.0) for _ in range(200)] for s in (first, second, other)]
    assert histories[0] == histories[1] != histories[2]


def test_unknown_conditions_count_as_bad() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM), CUTS)
    assert splitter.choose(0.5, math.nan, math.nan, math.nan).row == 0
    loaded = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, axis="cpu"), CUTS)
    assert loaded.choose(0.5, math.nan, 1.0, 80.0).row == 1


def test_what_was_decided_from_can_be_read() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM), CUTS)
    assert splitter.state == {}
    splitter.choose(None, 0.1, 5.0, 80.0)
    assert splitter.state == {"uncertainty": 1.0, "cpu": 0.1, "bandwidth_mbps": 5.0, "rtt_ms": 80.0}


def test_state_variables_beyond_the_four_are_passed_and_a_missing_one_counts_as_bad() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM, axis="temperature_c", edges=(70.0,)), CUTS)
    assert splitter.choose(0.5, 0.1, 1.0, 80.0, extra={"temperature_c": 75.0}).row == 1
    assert splitter.choose(0.5, 0.1, 1.0, 80.0, extra={"temperature_c": 65.0}).row == 0
    assert splitter.choose(0.5, 0.1, 1.0, 80.0).row == 1


def test_a_swap_holds_from_the_next_window_and_a_bad_one_changes_nothing() -> None:
    splitter = Splitter(make(SLOW_LOCAL_FAST_WAVEFORM), CUTS)
    splitter.choose(0.0, 0.1, 5.0, 80.0)
    known = splitter.uncertainty
    swapped = make(((0.0, 0.0, 0.0, 5.0, 0.0),) * 2)
    splitter.swap(swapped, {})
    assert splitter.table is swapped
    assert splitter.choose(None, 0.1, 5.0, 80.0).cut == "embedding"
    assert splitter.uncertainty == known
    with pytest.raises(TableError, match="other cuts"):
        splitter.swap(make(SLOW_LOCAL_FAST_WAVEFORM, bundle_cuts=cuts_digest(["a"])), {})
    assert splitter.table is swapped
    assert splitter.choose(None, 0.1, 5.0, 80.0).cut == "embedding"


def test_a_cap_on_bytes_holds_in_every_hour_and_the_best_that_it_allows_is_taken() -> None:
    cap_mb = 20.0
    table = make(((9.0, 8.0, 7.0, 6.0, 5.0),) * 2, limits=Limits(mb_per_hour=cap_mb), probe_rate=0.2)
    splitter = Splitter(table, CUTS)
    chosen = [splitter.choose(0.5, 0.1, 50.0, 80.0, connected=window % 1000 < 900).action for window in range(20_000)]
    sizes = np.asarray(table.action_bytes)[chosen]
    hour = np.convolve(sizes, np.ones(7200), "valid")
    assert hour.max() <= cap_mb * 1e6
    assert hour.min() > 0.9 * cap_mb * 1e6
    assert set(chosen[:40]) == {0}  # the burst
    assert {2, 3} <= set(chosen[7200:])
