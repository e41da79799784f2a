import pytest
import torch

from streamsplit_models.efficientnet import efficientnet_b0
from streamsplit_models.front_end import PRESETS

pytestmark = pytest.mark.integration

PUBLISHED = 5_288_548  # parameters of torchvision's efficientnet_b0, its 1000-way classifier included


def test_contract(check_encoder):
    encoder = efficientnet_b0()
    check_encoder(encoder, 512)
    assert encoder.front_end == PRESETS["cola"]


def test_fresh_encoder_is_seeded_and_tells_sounds_apart(check_start):
    check_start(efficientnet_b0)


def test_parameters_are_those_published_less_two_input_channels():
    features = efficientnet_b0().features
    classifier = 1280 * 1000 + 1000
    assert sum(p.numel() for p in features.parameters()) == PUBLISHED - classifier - 2 * 32 * 9


def test_sixteen_blocks_reduce_the_image_by_thirty_two():
    encoder = efficientnet_b0()
    assert len([stage for stage in encoder.stages if stage.count(".") == 2]) == 16
    assert encoder.features(torch.zeros(1, 1, 64, 96)).shape == (1, 1280, 2, 3)


def test_pooling_takes_the_maximum():
    encoder = efficientnet_b0()
    image = torch.zeros(1, 2, 3, 4)
    image[0, 1, 2, 3] = 5.0
    assert encoder.pool(image).tolist() == [[0.0, 5.0]]
