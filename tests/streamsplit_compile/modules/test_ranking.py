import math

import numpy as np
import pytest
import torch

from streamsplit_compile.modules.layers import layers_of
from streamsplit_compile.modules.ranking import RankedLayer, importance, study, study_again


def test_importance_is_the_gram_s_sum_over_a_group(encoder):
    layer = layers_of(encoder)[1]
    values = np.random.default_rng(0).normal(size=(layer.channels, layer.channels))
    found = importance(layer, torch.from_numpy(values))
    assert found == pytest.approx([values[a : a + 8, a : a + 8].sum() for a in (0, 8, 16)])
    ranked = RankedLayer(layer, (1.0, 3.0, 2.0))
    assert ranked.ranking == [1, 2, 0]
    assert ranked.best(2) == [*range(8, 24)]


def test_a_group_that_does_nothing_comes_last_and_losing_more_costs_more(encoder, windows):
    with torch.no_grad():
        encoder.features[4].conv2.weight[:, :8] = 0
    known = study(encoder, windows)
    one = known.layers[2]
    assert one.ranking == [1, 0]
    assert one.importance[0] == pytest.approx(0, abs=1e-12)
    assert one.losses[2] == 0
    assert one.losses[1] == pytest.approx(0, abs=1e-5)
    assert known.layers[0].losses[0] > known.layers[0].losses[3] > known.layers[0].losses[5] == 0
    assert math.isinf(known.layers[1].losses[0])


def test_another_study_keeps_the_losses(encoder, windows):
    known = study(encoder, windows[:24])
    again = study_again(known, encoder, windows[24:])
    assert [one.losses for one in again.layers] == [one.losses for one in known.layers]
    assert [one.importance for one in again.layers] != [one.importance for one in known.layers]
