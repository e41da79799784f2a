import pytest

from streamsplit_models.mobile import round_channels
from streamsplit_models.mobilenet import mobilenet_v3_small

pytestmark = pytest.mark.integration

PUBLISHED_FEATURES = 927_008  # parameters of torchvision's mobilenet_v3_small().features


@pytest.mark.parametrize("width", [0.75, 1.0])
def test_contract(width, check_encoder):
    check_encoder(mobilenet_v3_small(width), 128)


def test_fresh_encoder_is_seeded_and_tells_sounds_apart(check_start):
    check_start(mobilenet_v3_small)


def test_parameters_are_those_published_less_two_input_channels():
    features = mobilenet_v3_small().features
    assert sum(p.numel() for p in features.parameters()) == PUBLISHED_FEATURES - 2 * 16 * 9


def test_channels_at_three_quarters():
    features = mobilenet_v3_small(width=0.75).features
    outputs = [features[0][0].out_channels] + [block.block[-1][0].out_channels for block in features[1:-1]]
    assert outputs == [16, 16, 24, 24, 32, 32, 32, 40, 40, 72, 72, 72]


def test_checkpoint_keys_are_torchvision_s():
    keys = mobilenet_v3_small().state_dict().keys()
    assert {
        "features.0.0.weight",
        "features.1.block.1.fc1.bias",
        "features.4.block.2.fc2.weight",
        "features.4.block.3.1.running_var",
        "features.12.1.num_batches_tracked",
    } <= keys


@pytest.mark.parametrize(("channels", "rounded"), [(3, 8), (12, 16), (16, 16), (54, 56), (67, 64), (18, 24)])
def test_rounding_of_channels(channels, rounded):
    assert round_channels(channels) == rounded


@pytest.mark.parametrize("width", [0, -1, 100, float("nan"), "wide", True])
def test_an_impossible_width_is_refused(width):
    with pytest.raises(ValueError, match="width"):
        mobilenet_v3_small(width)
