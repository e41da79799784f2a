"""Synthetic traces have the promised ranges and rhythm; what the device observes never looks ahead."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from streamsplit_compile.traces import STEP_S, TraceModel, Traces, observe, synthetic_traces

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
    for field in dataclasses.fields(Traces):
        assert np.array_equal(getattr(TRACES, field.name), getattr(again, field.name))
        assert not np.array_equal(getattr(TRACES, field.name), getattr(other, field.name))


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
        field.name: np.concatenate([getattr(TRACES, field.name)[:, :100], getattr(TRACES, field.name)[:, 100:] * 3], 1)
        for field in dataclasses.fields(Traces)
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
    assert seen["bandwidth_mbps"][0, 11] == pytest.approx(5 - 4 * kept)
    assert seen["bandwidth_mbps"][0, 12] == pytest.approx(5 - 4 * kept**2)
    assert seen["uncertainty"][0, 11] == pytest.approx(1 + 4 * 0.3)
    assert seen["cpu"][0, 11] == 5.0
