"""Which windows are kept: the sure ones, the hopeless ones, and not all of either."""

import numpy as np
import pytest

from runtime_edge.formats.records.actions import ShipThresholds
from runtime_edge.formats.records.head import entropy
from runtime_edge.policy.ship_gate import MostUncertain, ShipGate


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


@pytest.mark.parametrize("share", [0.05, 0.25, 0.6])
@pytest.mark.parametrize("noisy", [False, True])
def test_in_the_long_run_a_share_is_shipped_and_it_is_the_most_uncertain_one(share, noisy):
    entropies = np.random.default_rng(1).beta(2, 5, 6000)
    gate = MostUncertain(share)
    shipped = np.array([gate.ships(entropy + 0.1 * noisy) for entropy in entropies])[2000:]
    assert shipped.mean() == pytest.approx(share, abs=0.02)
    threshold = np.quantile(entropies, 1 - share)
    assert (entropies[2000:][shipped] > threshold - 0.1).all()


def test_what_a_head_is_sure_of_is_never_shipped_however_large_the_share():
    gate = MostUncertain(1.0)
    assert not any(gate.ships(MostUncertain.LEAST) for _ in range(500))
    assert all(gate.ships(0.1) for _ in range(500))


def test_a_stream_of_equal_entropies_is_shipped_by_no_more_than_the_share():
    gate = MostUncertain(0.25)
    assert np.mean([gate.ships(0.4) for _ in range(2000)]) == pytest.approx(0.25, abs=0.02)
