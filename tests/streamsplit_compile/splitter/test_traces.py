"""Synthetic traces have the promised ranges and rhythm; what the device observes never looks ahead."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit_compile.splitter.traces import (
    FAMILIES,
    OUTAGE_MBPS,
    STEP_S,
    TraceModel,
    Traces,
    family_traces,
    observe,
    synthetic_traces,
)

MEASURED = ("uncertainty", "cpu", "bandwidth_mbps", "rtt_ms")
TRACES = synthetic_traces(TraceModel(), 200, 480, seed=1)


def test_shapes_and_ranges() -> None:
    assert TRACES.shape == (200, 480)
    assert TRACES.bandwidth_mbps.min() >= 0.5
    assert TRACES.bandwidth_mbps.max() <= 8.0
    assert TRACES.rtt_ms.min() >= 35.0
    assert TRACES.rtt_ms.max() <= 215.0
    for share in (TRACES.cpu, TRACES.uncertainty):
        assert share.min() >= 0
        assert share.max() <= 1
    assert 1.5 < np.median(TRACES.bandwidth_mbps) < 2.7  # the geometric middle of 0.5 and 8 is 2


def test_the_same_seed_gives_the_same_traces() -> None:
    again, other = (synthetic_traces(TraceModel(), 200, 480, seed=seed) for seed in (1, 2))
    for name in MEASURED:
        assert np.array_equal(getattr(TRACES, name), getattr(again, name))
        assert not np.array_equal(getattr(TRACES, name), getattr(other, name))


def test_link_levels_change_every_thirty_seconds() -> None:
    still = synthetic_traces(TraceModel(jitter_ms=0.0), 300, 480, seed=3)
    changes = np.diff(still.rtt_ms, axis=1) != 0
    assert changes.sum() / 300 == pytest.approx(479 * STEP_S / 30, rel=0.02)
    gaps = np.diff(np.flatnonzero(changes[0]))
    assert set(gaps) == {60}


def test_load_moves_between_neighbouring_levels_with_the_given_probability() -> None:
    levels = np.asarray(TraceModel().cpu_levels)
    state = np.abs(TRACES.cpu[..., None] - levels).argmin(-1)
    steps = np.abs(np.diff(state, axis=1))
    assert steps.max() == 1
    assert (steps > 0).mean() == pytest.approx(0.05 * 0.75, abs=0.005)  # at the ends half of the moves stay


def test_uncertainty_is_autoregressive() -> None:
    logit = np.log(TRACES.uncertainty / (1 - TRACES.uncertainty))
    correlation = np.corrcoef(logit[:, :-1].ravel(), logit[:, 1:].ravel())[0, 1]
    assert correlation == pytest.approx(0.9, abs=0.02)
    assert logit.std() == pytest.approx(1.0, abs=0.08)


def test_observations_are_of_the_past() -> None:
    seen = observe(TRACES)
    future = {
        name: np.concatenate([getattr(TRACES, name)[:, :100], getattr(TRACES, name)[:, 100:] * 3], 1)
        for name in MEASURED
    }
    altered = observe(Traces(**future))
    for name, values in seen.items():
        assert np.array_equal(values[:, :101], altered[name][:, :101])
        assert not np.array_equal(values[:, 101], altered[name][:, 101])


def test_the_link_estimate_follows_a_step_within_two_windows() -> None:
    step = np.where(np.arange(20) < 10, 1.0, 5.0)[None]
    seen = observe(Traces(uncertainty=step, cpu=step, bandwidth_mbps=step, rtt_ms=step))
    kept = 0.7**5  # factor 0.3, five samples a window
    assert seen["bandwidth_mbps"][0, 10] == 1.0
    assert 1 / seen["bandwidth_mbps"][0, 11] == pytest.approx(1 / 5 + 4 / 5 * kept)
    assert 1 / seen["bandwidth_mbps"][0, 12] == pytest.approx(1 / 5 + 4 / 5 * kept**2)
    assert seen["rtt_ms"][0, 12] == pytest.approx(5 - 4 * kept**2)
    assert seen["uncertainty"][0, 11] == pytest.approx(1 + 4 * 0.3)
    assert seen["cpu"][0, 11] == 5.0


def test_what_else_was_recorded_is_observed_a_window_later() -> None:
    shape = (2, 5)
    still = np.full(shape, 0.5)
    rising = np.tile(np.arange(5.0), (2, 1))
    seen = observe(Traces(still, still, still, still, temperature_c=40 + rising))
    assert seen["temperature_c"][0].tolist() == [40, 40, 41, 42, 43]
    assert "battery" not in seen


def test_wifi_drops_out_and_outages_leave_nothing() -> None:
    wifi = synthetic_traces(FAMILIES["wifi"], 100, 480, seed=4).bandwidth_mbps
    assert 0.05 < (wifi == FAMILIES["wifi"].dropout_mbps).mean() < 0.25  # 6 s of every 46 s
    assert wifi[wifi != FAMILIES["wifi"].dropout_mbps].min() >= 2.0
    outages = synthetic_traces(FAMILIES["outages"], 100, 480, seed=4)
    gone = outages.bandwidth_mbps == 0
    assert 0.15 < gone.mean() < 0.4
    lengths = np.diff(np.flatnonzero(np.diff(np.pad(gone.astype(int), ((0, 0), (1, 1))).ravel()) != 0))[::2] * STEP_S
    assert np.median(lengths) == pytest.approx(22.5, abs=6)
    assert observe(outages)["bandwidth_mbps"].min() == pytest.approx(OUTAGE_MBPS, rel=1e-3)


def test_offices_are_busy_by_day_and_idle_by_night() -> None:
    cpu = synthetic_traces(FAMILIES["office"], 200, 480, seed=5).cpu
    hourly = cpu.reshape(200, 8, 60).mean(2)
    assert (hourly < 0.1).mean() > 0.4
    assert (hourly > 0.2).mean() > 0.2


def test_families_stand_one_after_the_other() -> None:
    both = family_traces(("lte", "wifi"), 8, 60, seed=6)
    assert both.shape == (16, 60)
    assert both.bandwidth_mbps[:8].max() <= 8.0
    assert both.rtt_ms[8:].max() <= 45.0
    assert both.temperature_c is None
