"""The programme against trying everything."""

import itertools

import numpy as np
import pytest

from runtime_edge.errors import UsageError
from streamsplit_compile.modules.derivation import Cost, Limits, Option, choose

FIXED = Cost(1.0, 100.0, 50.0)


def layers_at_random(seed):
    random = np.random.default_rng(seed)
    return [
        [
            Option(float(loss), Cost(float(ms), float(size), float(peak)))
            for loss, ms, size, peak in zip(
                -np.sort(-random.random(4)), np.sort(random.random(4)), np.sort(random.random(4)) * 100,
                np.sort(random.random(4)) * 100, strict=True,
            )
        ]
        for _ in range(4)
    ]  # fmt: skip


def fits(options, limits):
    ms = FIXED.ms + sum(option.cost.ms for option in options)
    size = FIXED.weight_bytes + sum(option.cost.weight_bytes for option in options)
    peak = max([FIXED.peak_bytes, *(option.cost.peak_bytes for option in options)])
    return (
        (limits.ms is None or ms <= limits.ms)
        and (limits.weight_bytes is None or size <= limits.weight_bytes)
        and (limits.memory_bytes is None or size + peak <= limits.memory_bytes)
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limits", [Limits(ms=3.0), Limits(3.0, 280.0), Limits(memory_bytes=320.0), Limits()])
def test_the_least_loss_of_all_that_fit(seed, limits):
    layers = layers_at_random(seed)
    taken = [own[place] for own, place in zip(layers, choose(layers, FIXED, limits), strict=True)]
    assert fits(taken, limits)
    best = min(sum(o.loss for o in every) for every in itertools.product(*layers) if fits(every, limits))
    assert sum(option.loss for option in taken) == pytest.approx(best, rel=1e-3)


def test_what_is_too_little_is_named_with_what_is_needed():
    layers = [[Option(1.0, Cost(2.0, 30.0, 60.0))]]
    with pytest.raises(UsageError, match=r"--budget-ms 2: at least 3 ms; --bytes 120: at least 130; --memory-mb"):
        choose(layers, FIXED, Limits(2.0, 120.0, 150.0))
