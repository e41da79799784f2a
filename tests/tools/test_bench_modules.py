"""The bench of sub-models: which groups its arms keep, and how two arms are compared."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streamsplit_compile.modules.ranking import RankedLayer, Study
from tools.bench_modules import Images, difference, even, random_values


def study_of(*importances):
    layers = [SimpleNamespace(name=f"layer{i}", channels=8 * len(own)) for i, own in enumerate(importances)]
    return Study(None, tuple(RankedLayer(layer, own) for layer, own in zip(layers, importances, strict=True)))


def test_the_same_share_of_each_layer_stays_and_at_least_one_group():
    known = study_of((1.0, 4.0, 2.0, 3.0), (1.0, 2.0))
    kept = even(known, 0.5, {one.layer.name: one.importance for one in known.layers})
    assert kept == {"layer0": [*range(8, 16), *range(24, 32)], "layer1": [*range(8, 16)]}
    assert even(known, 0.01, random_values(known, 0))["layer1"] in ([*range(8)], [*range(8, 16)])
    assert random_values(known, 1)["layer0"].tolist() == random_values(known, 1)["layer0"].tolist()


def test_windows_of_the_chosen_clips_only():
    images = Images(
        torch.arange(6.0).view(6, 1, 1, 1).half(), np.array([0, 0, 1, 1, 2, 2]), np.arange(3), np.array(["a"] * 3)
    )
    found = images.some(np.array([True, False, True]), 3)
    assert len(found) == 3
    assert set(found.flatten().tolist()) < {0.0, 1.0, 4.0, 5.0}


def test_points_between_two_arms_with_their_interval():
    points, said = difference(np.array([1.0, 1.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.5, 0.0]))
    assert points == pytest.approx(50)
    assert said.startswith("50.0 (")
