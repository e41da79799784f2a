"""Which windows are kept: the sure ones, the hopeless ones, and not all of either."""

import numpy as np
import pytest

from runtime_edge.formats.records.actions import ShipThresholds
from runtime_edge.formats.records.head import entropy
from runtime_edge.policy.ship_gate import ShipGate


def test_what_is_sure_and_what_is_hopeless_is_kept():
    gate = ShipGate(ShipThresholds(min_entropy=0.02, max_entropy=0.4, exploration=0.0))
    assert [gate.ships(entropy) for entropy in (0.0, 0.01, 0.03, 0.39, 0.5, 1.0)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_after_the_warm_up_the_upper_threshold_follows_the_mean_entropy():
    gate = ShipGate(ShipThresholds(max_entropy=0.4, max_entropy_scale=0.5, warm_up=50, exploration=0.0))
    for _ in range(50):
        assert gate.max_entropy == 0.4
        gate.ships(0.2)
    for _ in range(50):
        gate.ships(0.4)
    assert gate.max_entropy == pytest.approx(0.4 * 0.5 * 0.3 / 0.2)


def test_a_share_of_what_is_kept_is_shipped_all_the_same():
    gate = ShipGate(ShipThresholds(exploration=0.1), seed=3)
    shipped = sum(gate.ships(0.0) for _ in range(2000))
    assert 140 < shipped < 260
    again = ShipGate(ShipThresholds(exploration=0.1), seed=3)
    assert shipped == sum(again.ships(0.0) for _ in range(2000))


def test_entropy_is_a_share_of_what_can_be():
    assert entropy(np.full(5, 0.2, np.float32), "softmax") == pytest.approx(1.0, abs=1e-6)
    assert entropy(np.array([1.0, 0.0, 0.0], np.float32), "softmax") == pytest.approx(0.0, abs=1e-6)
    two = np.array([0.9, 0.1], np.float32)
    assert entropy(two, "softmax") == pytest.approx(-(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)))
    assert entropy(two, "sigmoid") == pytest.approx(entropy(two, "softmax"))
    assert entropy(np.array([0.5, 0.5, 1.0], np.float32), "sigmoid") == pytest.approx(2 / 3, abs=1e-6)
