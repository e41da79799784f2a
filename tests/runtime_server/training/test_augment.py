import pytest
import torch

from runtime_edge.errors import UsageError
from runtime_server.training.augment import AugmentConfig, augment

OFF = dict.fromkeys(vars(AugmentConfig()), 0.0)
SHAPES = [(4, 3, 16, 20), (4, 12, 8), (4, 500), (4, 2, 3, 4, 5)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def only(**changes):
    return AugmentConfig(**(OFF | changes))


def sample(shape, seed=9):
    return torch.randn(shape, generator=seeded(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_view_keeps_shape_and_dtype_and_leaves_the_input_alone(shape, dtype):
    x = sample(shape).to(dtype)
    before = x.clone()
    view = augment(x, seeded(), waveform=len(shape) == 2)
    assert (view.shape, view.dtype) == (x.shape, dtype)
    assert view.isfinite().all()
    assert torch.equal(x, before)
    assert all((a != b).any() for a, b in zip(view, x, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_seed_decides_the_view(shape):
    x = sample(shape)
    assert torch.equal(augment(x, seeded(1)), augment(x, seeded(1)))
    assert not torch.equal(augment(x, seeded(1)), augment(x, seeded(2)))


@pytest.mark.parametrize("shape", SHAPES)
def test_everything_off_is_the_identity(shape):
    x = sample(shape)
    torch.testing.assert_close(augment(x, seeded(), only(), waveform=len(shape) == 2), x)


@pytest.mark.parametrize(
    ("shape", "name", "axis", "waveform"),
    [
        ((50, 3, 16, 20), "frequency_mask", 2, False),
        ((50, 3, 16, 20), "time_mask", 3, False),
        ((50, 20, 8), "time_mask", 1, False),
        ((50, 400), "time_mask", 1, True),
    ],
)
def test_a_mask_is_one_stretch_of_its_axis_at_the_samples_mean(shape, name, axis, waveform):
    x = sample(shape)
    view = augment(x, seeded(), only(**{name: 0.5}), waveform=waveform)
    widths = []
    for before, after in zip(x, view, strict=True):
        changed = (before != after).movedim(axis - 1, 0).reshape(shape[axis], -1)
        assert torch.equal(changed.any(dim=1), changed.all(dim=1))
        where = changed.any(dim=1).nonzero().flatten()
        widths.append(len(where))
        if len(where):
            assert where[-1] - where[0] + 1 == len(where)
            masked = after.movedim(axis - 1, 0)[where]
            torch.testing.assert_close(masked, before.mean().expand_as(masked))
    assert max(widths) <= 0.5 * shape[axis]
    assert len(set(widths)) > 3


def test_masks_reach_both_ends():
    changed = augment(sample((400, 10, 2)), seeded(), only(time_mask=0.4)) != sample((400, 10, 2))
    assert changed[:, 0].any()
    assert changed[:, -1].any()


def test_gain_is_one_factor_for_each_sample_within_its_range():
    x = sample((100, 40, 4))
    ratio = augment(x, seeded(), only(gain_db=6.0)) / x
    factor = ratio[:, 0, 0]
    torch.testing.assert_close(ratio, factor[:, None, None].expand_as(ratio))
    assert 10 ** (-6 / 20) <= factor.min() < 0.6
    assert 1.7 < factor.max() <= 10 ** (6 / 20)


def test_noise_is_relative_to_each_samples_own_deviation():
    x = sample((3, 20_000)) * torch.tensor([[1.0], [100.0], [0.0]])
    noise = augment(x, seeded(), only(noise=0.1)) - x
    torch.testing.assert_close(noise.std(dim=1), torch.tensor([0.1, 10.0, 0.0]), rtol=0.05, atol=0)


def test_mixing_blends_in_another_sample_at_a_low_level():
    x = torch.eye(8)
    view = augment(x, seeded(), only(mix=0.2))
    torch.testing.assert_close(view.sum(dim=1), torch.ones(8))
    assert (view.diagonal() >= 0.8).all()
    assert (view.diagonal() < 1).sum() >= 4


def test_a_shift_is_circular_and_only_for_waveforms():
    x = sample((20, 100))
    view = augment(x, seeded(), only(shift=0.1), waveform=True)
    offsets = []
    for before, after in zip(x, view, strict=True):
        matching = [k for k in range(-10, 11) if torch.equal(before.roll(k), after)]
        assert len(matching) == 1
        offsets += matching
    assert min(offsets) < 0 < max(offsets)
    assert torch.equal(augment(x, seeded(), only(shift=0.1, time_mask=0.5)), x)


def test_a_gain_never_leaves_float16():
    x = torch.full((8, 4, 4), 65504.0, dtype=torch.float16)
    assert augment(x, seeded(), only(gain_db=6.0)).isfinite().all()


@pytest.mark.parametrize(("name", "value"), [("time_mask", 1.5), ("noise", -1), ("gain_db", float("nan"))])
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(UsageError, match=name):
        AugmentConfig(**{name: value})
