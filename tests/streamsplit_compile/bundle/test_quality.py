"""Agreement by uncertainty: windows fall into the bin of their uncertainty, empty bins take the overall median."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_edge.formats.records.actions import ActionCosts
from streamsplit_compile.bundle.quality import BINS, by_uncertainty, uncertainties
from streamsplit_compile.splitter.pricing import bundle_actions


def test_each_bin_holds_the_median_of_its_windows() -> None:
    uncertainty = np.array([0.0, 0.1, 0.2, 0.26, 0.8, 1.0])
    cosines = np.array([0.9, 0.95, 1.0, 0.7, 0.5, 0.4])
    assert by_uncertainty(cosines, uncertainty) == [0.95, 0.7, pytest.approx(0.8), 0.45]


def test_uncertainty_is_that_of_a_warm_memory() -> None:
    random = np.random.default_rng(0)
    near = np.tile(random.normal(size=16), (8, 1)) + 0.01 * random.normal(size=(8, 16))
    found = uncertainties(np.concatenate([near, random.normal(size=(8, 16))]).astype(np.float32))
    assert found.shape == (16,)
    assert 0 <= found.min() <= found.max() <= 1
    assert len(set(found.tolist())) > 4  # not the cold memory's 1


def test_a_compiled_bundle_says_how_quality_goes_with_uncertainty(small_bundle) -> None:
    actions = bundle_actions(small_bundle.manifest, "rpi4")
    assert all(isinstance(action, ActionCosts) and len(action.quality) == BINS for action in actions)
    assert all(0.9 < value <= 1.0 for action in actions for value in action.quality)
