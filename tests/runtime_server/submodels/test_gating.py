import pytest
import torch

from runtime_server.submodels.gating import gated, of_channels
from streamsplit_compile.modules.slicing import slice_encoder


@torch.no_grad()
def test_zeros_and_ones_give_what_a_sub_model_gives(encoder, windows):
    factors = {"features.1": torch.tensor([1.0, 0, 1, 0, 1]), "features.2": torch.tensor([0.0, 1])}
    small = slice_encoder(
        encoder, {"features.1": [*range(8), *range(16, 24), *range(32, 36)], "features.2": range(8, 16)}
    )
    with gated(encoder, factors):
        torch.testing.assert_close(encoder(windows), small(windows), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_window_has_factors_of_its_own_and_nothing_stays_behind(encoder, windows):
    plain, rows = encoder(windows[:2]), torch.tensor([[1.0, 1, 1, 1, 1], [0.0, 1, 1, 1, 1]])
    with gated(encoder, {"features.1": rows}):
        found = encoder(windows[:2])
    torch.testing.assert_close(found[0], plain[0])
    assert float((found[1] - plain[1]).abs().max()) > 1e-3
    torch.testing.assert_close(encoder(windows[:2]), plain)


def test_factors_get_gradients(encoder, windows):
    factors = torch.ones(5, requires_grad=True)
    with gated(encoder, {"features.1": factors}):
        encoder(windows[:4])[:, 0].sum().backward()
    assert (factors.grad != 0).all()


def test_a_value_of_a_group_is_that_of_its_channels(encoder):
    layer = encoder.inner_layers()[0]
    assert of_channels(layer, torch.arange(5.0)).tolist() == [[0.0] * 8 + [1.0] * 8 + [2.0] * 8 + [3.0] * 8 + [4.0] * 4]


def test_an_unknown_layer_is_refused(encoder):
    with pytest.raises(KeyError, match="nowhere"), gated(encoder, {"nowhere": torch.ones(1)}):
        pass
