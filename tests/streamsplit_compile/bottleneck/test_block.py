import numpy as np
import pytest
import torch

from runtime_edge.errors import BundleError
from runtime_edge.formats.encoder.bottleneck_info import MAX_LATENT_VALUES
from runtime_edge.formats.manifest import Cut, Int8Scale
from streamsplit_compile.bottleneck.block import Bottleneck, channels_of, layout_of, read_bottleneck
from streamsplit_compile.bottleneck.pca import fit_pca, with_step

SHAPES = [
    ((1, 32, 8, 7), 1, (2, 2)),
    ((1, 64, 4, 4), 1, (1, 1)),
    ((1, 64, 32, 25), 1, (4, 4)),
    ((1, 1, 128, 100), 2, (16, 13)),
    ((1, 12, 31), 1, (1, 4)),
    ((1, 101, 384), 2, (1, 2)),
    ((1, 384), 1, (1, 1)),
]
"""Activations, the axis of their scales, and the patches they are cut into."""


def cut_of(shape, axis=1, index=1):
    return Cut(index=index, name="cut", node="cut", shape=shape, bytes={}, agreement={}, int8=Int8Scale(
        axis=axis, scale=b"", zero_point=b""
    ))  # fmt: skip


@pytest.mark.parametrize(("shape", "axis", "patch"), SHAPES)
def test_latents_of_images_sequences_and_vectors_are_small_and_come_back_in_their_shape(shape, axis, patch):
    layout = layout_of(cut_of(shape, axis))
    assert layout.patch == patch
    block = Bottleneck(layout, channels_of(layout), hidden=4)

    latents = block.encode(torch.randn(3, *shape[1:]))

    assert latents.shape == (3, *block.latent_shape[1:])
    assert latents[0].numel() <= MAX_LATENT_VALUES
    assert block.decode(latents).shape == (3, *shape[1:])


def test_large_patches_at_few_places_have_more_channels():
    found = {shape: channels_of(layout_of(cut_of(shape))) for shape in [(1, 256, 8, 7), (1, 32, 8, 7), (1, 64, 32, 25)]}
    assert found == {(1, 256, 8, 7): 128, (1, 32, 8, 7): 64, (1, 64, 32, 25): 64}


@pytest.mark.parametrize("cut", [cut_of((1, 16000), index=0), cut_of((2, 8, 4, 4)), cut_of((1, 2, 3, 4, 5))])
def test_there_is_none_for_the_waveform_several_rows_or_more_dimensions(cut):
    assert layout_of(cut) is None


@pytest.mark.parametrize(("shape", "axis", "patch"), SHAPES[:1] + SHAPES[3:6])
def test_all_components_give_back_what_they_were_fitted_to(shape, axis, patch):
    layout = layout_of(cut_of(shape, axis))
    activations = torch.randn(200, *shape[1:]) @ torch.randn(shape[-1], shape[-1]) + 3.0

    block, _ = fit_pca(layout, torch.split(activations, 64), layout.patch_values)

    assert torch.allclose(block.decode(block.encode(activations)), activations, atol=2e-2)


def test_components_are_numpys_and_the_same_every_time():
    layout = layout_of(cut_of((1, 5)))
    activations = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 6.0))
    block, deviation = fit_pca(layout, [activations], 3)

    values, vectors = np.linalg.eigh(np.cov(activations.double().numpy(), rowvar=False, bias=True))
    found = block.analysis.weight.detach().numpy()[:, :, 0, 0]

    assert np.allclose(np.abs(found @ vectors[:, ::-1][:, :3]), np.eye(3), atol=1e-4)
    assert deviation == pytest.approx(np.sqrt(values[-1]))
    assert fit_pca(layout, [activations], 3)[0].to_bytes() == block.to_bytes()


def test_a_step_changes_what_a_value_is_worth_and_nothing_else():
    layout = layout_of(cut_of((1, 5)))
    activations = torch.randn(100, 5)
    block, _ = fit_pca(layout, [activations], 5)

    coarse = with_step(block, 0.25)

    assert torch.allclose(coarse.encode(activations), block.encode(activations) * 4, atol=1e-4)
    assert torch.allclose(coarse.decode(coarse.encode(activations)), activations, atol=1e-4)


def test_weights_come_back_from_their_bytes_and_damaged_ones_are_refused():
    cut = cut_of((1, 32, 8, 7))
    block = Bottleneck(layout_of(cut), 16, hidden=8).eval()
    data, activation = block.to_bytes(), torch.randn(1, 32, 8, 7)

    read = read_bottleneck(data, cut, "bundle/")

    assert torch.equal(read.decode(read.encode(activation)), block.decode(block.encode(activation)))
    for wrong in (b"", data[:-40], data[:100]):
        with pytest.raises(BundleError, match=r"bundle/: not a bottleneck for cut cut .*compile it again"):
            read_bottleneck(wrong, cut, "bundle/")
    with pytest.raises(BundleError, match="not a bottleneck for cut"):
        read_bottleneck(data, cut_of((1, 12, 31)), "bundle/")
    with torch.no_grad():
        block.synthesis.bias[0] = torch.nan
    with pytest.raises(BundleError, match="not finite"):
        read_bottleneck(block.to_bytes(), cut, "bundle/")
