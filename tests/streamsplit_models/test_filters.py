import math

import numpy as np
import pytest
import scipy.fft
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit_models.filters import ShortTransforms, factors

COMPOSITE = (128, 240, 256, 400, 480, 500, 512, 600, 1000, 1024, 1536, 2048)


def power_by_bin(short, frames, hop, signal):
    """(frames, outer * inner // 2 + 1) as the matrices make it; NaN where a bin was not asked for."""
    run = math.gcd(hop, short.inner)
    runs = signal[: len(signal) // run * run].reshape(-1, run)
    cut = runs[short.places(frames, hop)].reshape(short.taps, frames, short.inner) * short.weights
    residues = np.einsum("cq,qtj->ctj", short.first, cut).reshape(2, short.half, frames, short.inner)
    residues = residues.transpose(1, 2, 0, 3).reshape(short.half, frames, 2 * short.inner)
    squares = (residues @ short.second) ** 2
    wanted = len(short.order)
    power = (squares[..., :wanted] + squares[..., wanted:]).transpose(2, 0, 1).reshape(-1, frames)
    found = np.full((frames, short.outer * short.inner // 2 + 1), np.nan)
    found[:, short.bins[short.bins >= 0]] = power[short.bins >= 0].T
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(COMPOSITE),
    st.floats(0.6, 1.0),
    st.integers(1, 700),
    st.floats(0.1, 1.0),
    st.integers(1, 6),
)
def test_two_short_transforms_are_one_long_one(n_fft, win_share, hop, band_share, frames):
    win = round(n_fft * win_share)
    window = scipy.signal.get_window("hann", win)
    lengths = factors(n_fft, win)
    assert lengths is not None
    assert math.prod(lengths) == n_fft
    last = int(band_share * n_fft / 2)
    signal = np.random.default_rng(n_fft + hop).standard_normal(frames * hop + 2 * n_fft)

    found = power_by_bin(ShortTransforms(*lengths, window, last), frames, hop, signal)[:, : last + 1]

    cut = np.stack([signal[t * hop : t * hop + win] for t in range(frames)])
    expected = np.abs(scipy.fft.rfft(cut * window, n_fft))[:, : last + 1] ** 2
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("n_fft", [16, 64, 254, 2 * 257])
def test_tiny_lengths_and_twice_a_prime_stay_one_product(n_fft):
    assert factors(n_fft, n_fft) is None


@pytest.mark.parametrize(("n_fft", "lengths"), [(512, (32, 16)), (1024, (32, 32)), (400, (20, 20))])
def test_lengths_are_as_equal_as_they_can_be(n_fft, lengths):
    assert factors(n_fft, n_fft) == lengths


def test_values_that_no_band_looks_at_are_not_computed():
    whole = ShortTransforms(32, 32, np.ones(1024), 512)
    half = ShortTransforms(32, 32, np.ones(1024), 255)
    assert len(half.order) == len(whole.order) // 2
