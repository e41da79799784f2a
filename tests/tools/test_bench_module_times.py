import numpy as np
import pytest
import torch
from torch import nn

from tools.bench_module_times import at_half, ratio_of, session


def test_the_share_is_the_largest_at_which_the_time_is_at_most_half():
    asked = []

    def taken(share):
        asked.append(share)
        return 0.2 + share

    share, found = at_half(taken)
    assert found == pytest.approx(0.2 + share)
    assert 0.29 <= share <= 0.3
    assert len(asked) <= 6


def test_where_nothing_is_fast_enough_the_smallest_share_has_no_time():
    share, found = at_half(lambda share: 0.9)
    assert share == 0.05
    assert np.isnan(found)


def test_calls_take_turns():
    order = []
    ratio_of(lambda: order.append("small"), lambda: order.append("whole"), 3)
    assert order == ["small", "whole"] * 3


def test_a_session_gives_what_the_encoder_gives():
    encoder, image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval(), torch.randn(1, 1, 5, 5)
    np.testing.assert_allclose(session(encoder, image)()[0], encoder(image).detach(), rtol=1e-5, atol=1e-6)
