"""Channels inside blocks can be left out: what is left gives what the whole encoder gives with them at zero."""

import copy

import pytest
import torch
from torch import nn

from streamsplit_models.encoder import widths_kept
from streamsplit_models.mn import mn
from streamsplit_models.mobilenet import mobilenet_v3_small
from streamsplit_models.resnet import BasicBlock, ResNet18Encoder


def silenced(encoder, kept, waveform):
    """The whole encoder's embedding with the other channels at zero where they are read."""
    hooks = []
    for layer in encoder.inner_layers():
        mask = torch.zeros(layer.channels)
        mask[kept[layer.name]] = 1
        hooks += [
            encoder.get_submodule(reader).register_forward_pre_hook(
                lambda _module, inputs, mask=mask: inputs[0] * mask.view(1, -1, *[1] * (inputs[0].ndim - 2))
            )
            for reader in layer.readers
        ]
    with torch.no_grad():
        embedding = encoder(waveform)
    for hook in hooks:
        hook.remove()
    return embedding


@pytest.fixture(scope="module", params=["mobilenet", "mn", "resnet"])
def encoder(request):
    if request.param == "mobilenet":
        return mobilenet_v3_small(width=0.25)
    if request.param == "mn":
        return mn(width_mult=0.1)
    torch.manual_seed(0)
    return ResNet18Encoder("paper", 16).eval()


def test_a_slice_gives_what_the_whole_gives_with_the_other_channels_at_zero(encoder, sounds):
    torch.manual_seed(1)
    waveform = sounds(2, encoder.sample_rate, encoder.window_samples)
    kept = {
        layer.name: torch.randperm(layer.channels)[: layer.channels // 2].tolist() for layer in encoder.inner_layers()
    }
    small = copy.deepcopy(encoder)
    small.keep_channels(kept)
    with torch.no_grad():
        assert (small(waveform) - silenced(encoder, kept, waveform)).abs().max() <= 1e-5
        assert (small(waveform) - encoder(waveform)).abs().max() > 1e-4
    assert [layer.channels for layer in small.inner_layers()] == [len(own) for own in kept.values()]


def test_all_channels_in_another_order_are_the_encoder(encoder, sounds):
    waveform = sounds(2, encoder.sample_rate, encoder.window_samples)
    turned = copy.deepcopy(encoder)
    turned.keep_channels({layer.name: range(layer.channels)[::-1] for layer in encoder.inner_layers()})
    with torch.no_grad():
        assert (turned(waveform) - encoder(waveform)).abs().max() <= 1e-5


def test_weights_of_a_slice_fit_an_encoder_made_with_its_widths(check_encoder):
    encoder = mobilenet_v3_small(width=0.25)
    encoder.keep_channels({"features.3": [], "features.4": [3, 5, 7]})
    assert "features.3" not in encoder.stages
    again = mobilenet_v3_small(width=0.25, seed=1, inner={"features.3": 0, "features.4": 3})
    again.load_state_dict(encoder.state_dict())
    check_encoder(again, 128)


def test_a_block_is_skipped_by_what_it_adds_to():
    block = BasicBlock(4, 4, 1).eval()
    assert block.inner().skippable
    assert not BasicBlock(4, 4, 2).inner().skippable
    values = torch.rand(1, 4, 5, 5)
    nn.init.zeros_(block.conv2.weight)
    with torch.no_grad():
        torch.testing.assert_close(block(values), values)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ({"stem": 3}, "no layer 'stem'; the encoder has features.2,"),
        ({"features.2": 0}, "features.2: cannot be skipped"),
        ({"features.2": 1000}, "features.2: 1000 is not a whole number from 0 to"),
        ({"features.2": "3"}, "features.2: '3' is not a whole number"),
        ([3], "must map the names of layers"),
    ],
)
def test_widths_that_cannot_be_are_refused_by_name(inner, said):
    with pytest.raises(ValueError, match=f"inner.*{said}"):
        mobilenet_v3_small(width=0.25, inner=inner)


def test_channels_are_chosen_once_and_exist():
    encoder = mobilenet_v3_small(width=0.25)
    assert widths_kept(encoder.inner_layers(), None) == {}
    for wrong in ([0, 0], [-1], [10_000]):
        with pytest.raises(ValueError, match=r"features\.2: not a choice"):
            encoder.keep_channels({"features.2": wrong})
