import pytest
import torch

from streamsplit_models.resnet import resnet18

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def encoder():
    return resnet18()


def test_contract(encoder, check_encoder):
    check_encoder(encoder, 128)


def test_fresh_encoder_is_seeded_and_tells_sounds_apart(check_start):
    check_start(resnet18)


def test_parameters_are_those_published(encoder):
    # ResNet-18 has 11 689 512: less the classifier, less two of three input channels, plus the projection.
    expected = 11_689_512 - (512 * 1000 + 1000) - 2 * 64 * 49 + (512 * 128 + 128)
    assert sum(p.numel() for p in encoder.parameters()) == expected


def test_stages_are_the_paper_s(encoder):
    blocks = [f"layer{layer}.{index}" for layer in range(1, 5) for index in range(2)]
    assert encoder.stages == ("log_mel", "input_norm", "stem", *blocks, "pool", "projection", "normalize")


def test_shapes_of_the_layers(encoder):
    x = encoder.stem(torch.zeros(1, 1, 128, 98))
    assert x.shape == (1, 64, 32, 25)
    for layer, shape in zip(
        ("layer1", "layer2", "layer3", "layer4"),
        ((64, 32, 25), (128, 16, 13), (256, 8, 7), (512, 4, 4)),
        strict=True,
    ):
        x = encoder.get_submodule(layer)(x)
        assert x.shape[1:] == shape


def test_fresh_activations_are_well_conditioned(encoder, sounds):
    x = sounds(24, encoder.sample_rate, encoder.window_samples)
    with torch.no_grad():
        for stage in encoder.stages[:-1]:
            x = encoder.get_submodule(stage)(x)
            if stage not in ("log_mel",):
                assert 0.05 < x.std() < 5, stage


def test_front_end_and_width_are_the_callers(check_encoder):
    check_encoder(resnet18(32, {"preset": "yamnet", "window_samples": 8_000}), 32)


def test_one_training_step_moves_every_parameter(sounds):
    encoder = resnet18()
    waveform = sounds(4, encoder.sample_rate, encoder.window_samples)
    (encoder(waveform)[:, 0].sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("dim", [0, -1, 10**6, 1.5, True])
def test_an_impossible_width_is_refused(dim):
    with pytest.raises(ValueError, match="embedding_dim"):
        resnet18(embedding_dim=dim)
