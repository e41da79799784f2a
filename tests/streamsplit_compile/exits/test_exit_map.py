"""What an exit sees of an activation, and its weights on the disk."""

import numpy as np
import pytest
import torch

from runtime_edge.errors import BundleError
from runtime_edge.formats.manifest import Cut, Int8Scale
from streamsplit_compile.exits.exit_map import ExitMap, bands_of, exit_layout, features_of, read_exit


def cut(*shape, axis=1, index=2):
    scale = Int8Scale(axis=axis, scale=b"", zero_point=b"")
    return Cut(index=index, name="cut", node="cut", shape=shape, bytes={}, agreement={}, int8=scale)


@pytest.mark.parametrize(
    ("shape", "axis", "bands", "features"),
    [
        ((1, 32, 8, 7), 1, 8, 512),
        ((1, 16, 32, 25), 1, 32, 1024),
        ((1, 1, 128, 98), 1, 128, 256),
        ((1, 272, 4, 4), 1, 4, 2176),
        ((1, 50, 96), 2, 1, 192),
        ((1, 96, 50), 1, 1, 192),
        ((1, 384), 1, 1, 384),
    ],
)
def test_there_are_means_and_deviations_of_channels_in_bands_of_rows(shape, axis, bands, features):
    layout = exit_layout(cut(*shape, axis=axis))
    assert (bands_of(layout), features_of(layout)) == (bands, features)
    found = ExitMap(layout, 4, 3, unit=True).statistics(torch.rand(5, *shape[1:]))
    assert found.shape == (5, features)


@pytest.mark.parametrize(
    "refused", [cut(1, 16000, index=0), cut(1, 5000), cut(1, 2, 3, 4, 5), cut(2, 8, 4, 4), cut(1, 3000, 4, 4)]
)
def test_the_waveform_and_what_is_no_image_or_too_wide_has_none(refused):
    assert exit_layout(refused) is None


def test_statistics_are_those_of_numpy():
    layout = exit_layout(cut(1, 3, 16, 9))
    x = np.random.default_rng(0).normal(2.0, 0.5, (4, 3, 16, 9)).astype(np.float32)
    found = ExitMap(layout, 4, 3, unit=True).statistics(torch.from_numpy(x)).numpy().reshape(4, 6, bands_of(layout))
    assert bands_of(layout) == 16
    np.testing.assert_allclose(found[:, :3], x.mean(3), rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:], x.std(3), rtol=1e-4)


def test_what_was_written_is_read_again_and_a_unit_exit_gives_unit_vectors():
    at = cut(1, 50, 96, axis=2)
    block, x = ExitMap(exit_layout(at), 8, 5, unit=True).eval(), torch.rand(3, 50, 96)
    again = read_exit(block.to_bytes(), at, "here")
    assert block.to_bytes() == again.to_bytes()
    with torch.inference_mode():
        found = again(x)
        assert torch.equal(found, block(x))
    assert torch.allclose(found.norm(dim=1), torch.ones(3))


def test_weights_of_another_cut_or_that_are_not_finite_are_refused_in_one_line():
    at = cut(1, 4, 8, 8)
    block = ExitMap(exit_layout(at), 8, 5, unit=False).eval()
    with pytest.raises(BundleError, match=r"^here: not an exit for cut cut \(RuntimeError\); compile it again$"):
        read_exit(block.to_bytes(), cut(1, 5, 8, 8), "here")
    with torch.no_grad():
        block.outer.bias[0] = float("nan")
    with pytest.raises(BundleError, match=r"^here: weights of the exit at cut are not finite; compile it again$"):
        read_exit(block.to_bytes(), at, "here")
