import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import chisquare, entropy, norm
from sklearn.metrics import adjusted_rand_score

from runtime_edge.errors import FormatError, FrameError, UsageError
from runtime_edge.policy.memory import (
    COLD_WINDOWS,
    VARIANCE_FLOOR,
    WEIGHT_FLOOR,
    GaussianMemory,
    parameter_bytes,
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def clusters(count, windows, dim=128, noise=0.3, seed=0):
    """Windows around `count` orthogonal directions, in random order, with their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(count, size=windows)
    scatter = noise * rng.standard_normal((windows, dim)) / np.sqrt(dim)
    return unit(np.eye(dim)[labels] + scatter).astype(np.float32), labels


def reference_log_posterior(memory, z, noise=0.0):
    deviations = np.sqrt(memory.variances.astype(np.float64) + noise)
    joint = np.log(memory.weights.astype(np.float64))
    joint = joint + norm.logpdf(z, memory.means.astype(np.float64), deviations).sum(axis=1)
    return joint - logsumexp(joint)


def assert_intact(memory):
    assert np.isfinite(memory.means).all()
    assert np.isfinite(memory.variances).all()
    assert memory.variances.min() >= np.float32(VARIANCE_FLOOR)
    assert memory.weights.min() > 0
    assert memory.weights.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("resolution", [0.0, 1.0, 3.0])
def test_uncertainty_is_the_normalised_entropy_at_the_resolution(resolution):
    rng = np.random.default_rng(4)
    memory = GaussianMemory(components=5, dim=6, resolution=resolution)
    memory.update(clusters(5, COLD_WINDOWS, dim=6)[0])
    means, variances = 0.8 * unit(rng.standard_normal((5, 6))), rng.uniform(0.05, 0.3, (5, 6))
    memory.load_state({**memory.state(), "means": means, "variances": variances})
    noise = resolution * memory.spread / (4 * np.log(5))
    values = []
    for z in unit(rng.standard_normal((20, 6))).astype(np.float32):
        expected = entropy(np.exp(reference_log_posterior(memory, z, noise))) / np.log(5)
        values.append(memory.uncertainty(z))
        assert values[-1] == pytest.approx(expected, rel=1e-3)
    assert max(values) - min(values) > 0.02


def test_spread_is_the_mean_squared_distance_between_windows():
    windows, _ = clusters(3, 60, noise=0.5)
    memory = GaussianMemory(rate=1e-6)
    memory.update(windows)
    between = np.square(windows[:, None] - windows[None]).sum(-1)
    assert memory.spread == pytest.approx(between.mean(), rel=0.05)


def test_a_known_window_moves_components_by_rate_times_responsibility():
    rng = np.random.default_rng(4)
    memory = GaussianMemory(components=5, dim=6, rate=0.05)
    means = 0.8 * unit(np.eye(6)[0] + 0.3 * rng.standard_normal((5, 6)))
    memory.load_state({**memory.state(), "means": means, "variances": rng.uniform(0.05, 0.3, (5, 6))})
    z = np.eye(6, dtype=np.float32)[0]
    r = np.exp(reference_log_posterior(memory, z))
    pi, mu, s = (a.astype(np.float64) for a in (memory.weights, memory.means, memory.variances))
    assert np.sort(r)[-2] > 0.1
    step = 0.05 * r[:, None]
    mean = (1 - step) * mu + step * z
    second = (1 - step) * (s + mu**2) + step * z**2
    weights = np.maximum(0.95 * pi + 0.05 * r, WEIGHT_FLOOR)

    memory.update(z)

    np.testing.assert_allclose(memory.means, mean, atol=1e-5)
    np.testing.assert_allclose(memory.variances, np.maximum(second - mean**2, 1e-6), rtol=1e-4)
    np.testing.assert_allclose(memory.weights, weights / weights.sum(), rtol=1e-4)


def test_a_window_of_one_component_moves_that_one_alone():
    rng = np.random.default_rng(4)
    memory = GaussianMemory(components=8, dim=64, rate=0.05)
    means, variances = 0.9 * np.eye(8, 64), rng.uniform(1e-3, 2e-3, (8, 64))
    memory.load_state({**memory.state(), "means": means, "variances": variances})
    z = unit(means[3] + 0.01 * rng.standard_normal(64)).astype(np.float32)
    assert np.exp(reference_log_posterior(memory, z))[3] == 1
    pi, mu, s = (a.astype(np.float64) for a in (memory.weights, memory.means, memory.variances))
    mean, variance, weights = mu.copy(), s.copy(), 0.95 * pi
    mean[3] += 0.05 * (z - mu[3])
    variance[3] = 0.95 * (s[3] + 0.05 * (z - mu[3]) ** 2)
    weights[3] += 0.05

    memory.update(z)

    np.testing.assert_allclose(memory.means, mean, atol=1e-6)
    np.testing.assert_allclose(memory.variances, variance, rtol=1e-5)
    np.testing.assert_allclose(memory.weights, weights, rtol=1e-5)


def test_components_find_the_clusters():
    windows, labels = clusters(8, 600)
    memory = GaussianMemory()
    memory.update(windows)
    found = [int(np.argmax(reference_log_posterior(memory, z))) for z in windows]
    assert adjusted_rand_score(labels, found) > 0.9


def test_a_new_sound_claims_a_component_without_its_embedding_being_kept():
    memory = GaussianMemory()
    z, _ = clusters(1, 1)
    memory.update(z)
    similarity = unit(memory.means) @ z[0]
    assert 0.7 < similarity.max() < 0.999
    assert np.sort(similarity)[-2] < 0.5


def test_new_sounds_in_a_row_do_not_claim_the_same_component():
    memory = GaussianMemory()
    sounds = np.eye(128)[:20]
    memory.update(sounds)
    assert len(set((sounds @ unit(memory.means).T).argmax(axis=1))) == 20
    assert (sounds @ unit(memory.means).T).max(axis=1).min() > 0.7


def test_when_all_are_taken_a_new_sound_replaces_the_lightest():
    memory = GaussianMemory(components=3)
    known = np.eye(128)[:3]
    memory.update(np.repeat(known, [30, 5, 30], axis=0)[np.random.default_rng(0).permutation(65)])
    memory.update(np.eye(128)[9])
    nearest = (np.eye(128)[[0, 1, 2, 9]] @ unit(memory.means).T).max(axis=1)
    assert (nearest > 0.7).tolist() == [True, False, True, True]


def test_uncertainty_is_one_while_cold_and_informative_right_after():
    memory = GaussianMemory()
    windows, _ = clusters(6, COLD_WINDOWS)
    assert [memory.update(z) for z in windows] == [1.0] * COLD_WINDOWS
    known = unit(np.eye(128)[:6])
    between = unit(known + np.roll(known, 1, axis=0))
    unheard = np.eye(128)[100:106]
    assert memory.uncertainty(known) < 0.1
    assert memory.uncertainty(between) > memory.uncertainty(known) + 0.1
    assert memory.uncertainty(unheard) > memory.uncertainty(known) + 0.2


def test_uncertainty_falls_as_a_sound_becomes_familiar():
    memory = GaussianMemory()
    memory.update(clusters(6, 100)[0])
    fresh = np.eye(128)[50]
    before = memory.update(fresh)
    assert memory.uncertainty(fresh) < before / 2


def test_a_batch_is_its_rows_in_order():
    windows, _ = clusters(5, 120)
    whole, single = GaussianMemory(seed=3), GaussianMemory(seed=3)
    mean = whole.update(windows)
    assert mean == pytest.approx(np.mean([single.update(z) for z in windows]))
    assert whole.to_bytes() == single.to_bytes()


def test_learning_without_the_uncertainty_leaves_the_same_bytes():
    windows, _ = clusters(4, 150)
    windows[70] = np.nan
    told, quiet = GaussianMemory(), GaussianMemory()
    told.update(windows)
    quiet.learn(windows)
    assert quiet.to_bytes() == told.to_bytes()
    assert (quiet.windows, quiet.rejected) == (told.windows, told.rejected) == (149, 1)


def test_the_seed_decides_the_bytes():
    windows, _ = clusters(5, 60)
    memories = [GaussianMemory(seed=seed) for seed in (1, 1, 2)]
    for memory in memories:
        memory.update(windows)
    first, same, other = (memory.to_bytes() for memory in memories)
    assert first == same != other


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, 1e300, 1e-30])
def test_useless_embeddings_are_counted_and_change_nothing(bad):
    memory = GaussianMemory()
    windows, _ = clusters(3, 80)
    memory.update(windows)
    before = memory.to_bytes()
    vector = np.full(128, bad)
    assert memory.update(vector) == 1.0
    assert memory.uncertainty(vector) == 1.0
    assert (memory.rejected, memory.windows) == (1, 80)
    assert memory.to_bytes() == before
    assert memory.update(np.stack([vector, windows[0]])) < 0.5


def test_length_does_not_matter():
    windows, _ = clusters(3, 80)
    plain, scaled = GaussianMemory(), GaussianMemory()
    plain.update(windows)
    scaled.update(windows * np.float32(1024))
    assert plain.to_bytes() == scaled.to_bytes()


def test_one_sound_forever():
    memory = GaussianMemory()
    z = clusters(1, 1)[0][0]
    for _ in range(5000):
        last = memory.update(z)
    assert_intact(memory)
    assert last < 0.15
    loaded = GaussianMemory()
    loaded.load_parameters(memory.to_bytes())
    assert_intact(loaded)


def test_noise_forever():
    memory = GaussianMemory(components=8, dim=16)
    rng = np.random.default_rng(0)
    values = [memory.update(rng.standard_normal(16)) for _ in range(3000)]
    assert_intact(memory)
    assert 0 <= min(values) <= max(values) <= 1


def test_its_state_goes_on_to_the_bit():
    windows, _ = clusters(9, 300, dim=16)
    whole, resumed = GaussianMemory(8, 16, seed=3), GaussianMemory(8, 16, seed=4)
    whole.update(windows[:150])
    whole.update(np.full(16, np.nan))
    resumed.load_state(whole.state())
    assert resumed.rejected == 1
    assert resumed.update(windows[150:]) == whole.update(windows[150:])
    assert resumed.to_bytes() == whole.to_bytes()
    assert np.array_equal(resumed.means, whole.means)


@pytest.mark.parametrize("change", [{"means": np.zeros((8, 15))}, {"rng": {}}, {"windows": "x"}, {"weights": None}])
def test_a_state_that_does_not_fit_changes_nothing(change):
    memory = GaussianMemory(8, 16)
    before = memory.to_bytes()
    with pytest.raises(FormatError, match="state of a memory"):
        memory.load_state({**GaussianMemory(8, 16, seed=9).state(), **change})
    assert memory.to_bytes() == before


def test_float16_round_trip():
    memory = GaussianMemory()
    memory.update(clusters(6, 300)[0])
    memory.variances[0] = VARIANCE_FLOOR
    data = memory.to_bytes()
    loaded = GaussianMemory()
    loaded.load_parameters(data)
    assert len(data) == 32_896 == 2 * (2 * 64 * 128) + 2 * 64
    np.testing.assert_allclose(loaded.means, memory.means, atol=5e-4)
    np.testing.assert_allclose(loaded.variances, memory.variances, rtol=2e-3)
    np.testing.assert_allclose(loaded.weights, memory.weights, rtol=2e-3)
    assert not loaded.cold
    assert loaded.spread == pytest.approx(memory.spread, rel=0.15)
    known = np.eye(128)[:6]
    assert loaded.uncertainty(known) == pytest.approx(memory.uncertainty(known), abs=0.05)


def parameters(components=4, dim=3, **changes):
    parts = {
        "weights": np.full(components, 1 / components),
        "means": np.eye(components, dim),
        "deviations": np.full((components, dim), 0.1),
    }
    for name, value in changes.items():
        parts[name].flat[0] = value
    return b"".join(part.astype("<f2").tobytes() for part in parts.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, 4 components of width 3 take 56"),
        (parameters() + b"\0", "57 bytes"),
        (parameters(weights=np.nan), "not finite"),
        (parameters(means=np.inf), "not finite"),
        (parameters(weights=0), "weight 0 is not positive"),
        (parameters(weights=-0.5), "weight -0.5"),
        (parameters(deviations=-1), "standard deviation -1 is negative"),
        (parameters(means=3), "mean of norm 3"),
    ],
)
def test_parameters_that_do_not_hold_are_refused_whole(data, message):
    memory = GaussianMemory(4, 3)
    before = memory.to_bytes()
    with pytest.raises(FrameError, match=message):
        memory.load_parameters(data)
    assert memory.to_bytes() == before
    assert memory.cold


def test_loading_renormalises_weights_and_floors_variances():
    memory = GaussianMemory(4, 3)
    memory.load_parameters(parameters(weights=0.75, deviations=0))
    assert_intact(memory)
    np.testing.assert_allclose(memory.weights, [0.5, 1 / 6, 1 / 6, 1 / 6], rtol=1e-3)
    assert memory.variances[0, 0] == np.float32(VARIANCE_FLOOR)


@given(data=st.binary(min_size=parameter_bytes(4, 3), max_size=parameter_bytes(4, 3)), z=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_leave_a_working_memory(data, z):
    memory = GaussianMemory(4, 3)
    try:
        memory.load_parameters(data)
    except FrameError:
        return
    assert_intact(memory)
    assert 0 <= memory.update(np.random.default_rng(z).standard_normal(3)) <= 1
    assert_intact(memory)


@given(
    weights=st.lists(st.floats(2**-10, 1, width=16), min_size=4, max_size=4),
    means=st.lists(st.floats(-0.5, 0.5, width=16), min_size=12, max_size=12),
    deviations=st.lists(st.floats(0, 60000, width=16), min_size=12, max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_any_parameters_that_hold_leave_a_working_memory(weights, means, deviations):
    memory = GaussianMemory(4, 3)
    memory.load_parameters(np.array([*weights, *means, *deviations], "<f2").tobytes())
    for z in np.eye(3):
        assert 0 <= memory.update(z) <= 1
    assert_intact(memory)
    assert np.isfinite(memory.sample_negatives(np.ones(3), 5, np.random.default_rng(0))).all()


def test_negatives_follow_the_stated_odds():
    rng = np.random.default_rng(5)
    means = unit(np.array([1.0, 0, 0, 0]) + 0.15 * rng.standard_normal((5, 4)))
    memory = GaussianMemory(5, 4)
    memory.means[:] = means
    memory.variances[:] = 1e-6
    memory.weights[:] = [0.3, 0.1, 0.2, 0.25, 0.15]
    own = 2
    odds = memory.weights * np.exp(-np.square(means - means[own]).sum(1) / (2 * 0.1**2))
    odds[own] = 0

    negatives = memory.sample_negatives(means[own], 4000, np.random.default_rng(0))

    assert negatives.shape == (4000, 4)
    assert negatives.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(negatives, axis=1), 1, atol=1e-5)
    nearest = np.argmax(negatives @ means.T, axis=1)
    seen = np.bincount(nearest, minlength=5)
    assert seen[own] == 0
    others = np.arange(5) != own
    assert chisquare(seen[others], 4000 * odds[others] / odds.sum()).pvalue > 1e-3


def test_negatives_spread_like_their_component():
    memory = GaussianMemory(2, 64)
    memory.means[:] = np.eye(2, 64)
    memory.variances[:] = [[1e-6] * 64, [0.25 / 64] * 64]
    negatives = memory.sample_negatives(np.eye(64)[0], 500, np.random.default_rng(0))
    # |mean| = 1 with noise of squared length 0.25: the cosine to the mean is about 1 / sqrt(1.25).
    assert (negatives @ np.eye(64)[1]).mean() == pytest.approx(1 / np.sqrt(1.25), abs=0.02)


def test_negatives_for_several_anchors():
    trained = GaussianMemory(components=16, dim=24, resolution=1.0)
    trained.update(clusters(6, 400, dim=24, noise=1.2)[0])
    anchors = clusters(6, 3, dim=24)[0]
    rngs = [np.random.default_rng(1) for _ in range(3)]
    several = trained.sample_negatives(anchors, 7, rngs[0])
    assert several.shape == (3, 7, 24)
    np.testing.assert_array_equal(several[0], trained.sample_negatives(anchors[0], 7, rngs[1]))
    np.testing.assert_array_equal(several, trained.sample_negatives(anchors, 7, rngs[2]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: GaussianMemory(components=1),
        lambda: GaussianMemory(dim=0),
        lambda: GaussianMemory(rate=1.0),
        lambda: GaussianMemory(resolution=float("nan")),
        lambda: GaussianMemory().update(np.ones(5)),
        lambda: GaussianMemory().update(np.ones((2, 2, 128))),
        lambda: GaussianMemory().sample_negatives(np.zeros(128), 3, np.random.default_rng(0)),
        lambda: GaussianMemory().sample_negatives(np.full(128, np.nan), 3, np.random.default_rng(0)),
    ],
)
def test_misuse_is_one_clear_error(call):
    with pytest.raises(UsageError, match="memory: "):
        call()
