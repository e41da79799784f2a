"""Sample-rate conversion against SciPy's polyphase filter and against mathematics."""

from __future__ import annotations

from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from runtime_edge.audio.resample import Resampler

RATES = [8_000, 11_025, 22_050, 44_100, 48_000, 96_000]


def tone(hz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def convert(samples: np.ndarray, source_hz: int, target_hz: int, sizes: list[int]) -> np.ndarray:
    """Push `samples` in pieces of the given sizes, round and round."""
    resampler, pieces, position, turn = Resampler(source_hz, target_hz), [], 0, 0
    while position < samples.size:
        size = sizes[turn % len(sizes)]
        pieces.append(resampler.push(samples[position : position + size]))
        position, turn = position + size, turn + 1
    return np.concatenate([*pieces, resampler.finish()])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("hz", [100.0, 997.0, 2_000.0])
def test_a_tone_in_band_comes_out_as_scipy_makes_it(rate: int, hz: float) -> None:
    source = tone(hz, rate)

    ours = convert(source, rate, 16_000, [rate // 10])

    divisor = gcd(rate, 16_000)
    scipys = resample_poly(source, 16_000 // divisor, rate // divisor, window=("kaiser", 12.0))
    assert abs(ours.size - 16_000) <= 1
    middle = slice(1_000, 15_000)  # the ends depend on how silence beyond them is assumed
    np.testing.assert_allclose(ours[middle], tone(hz, 16_000)[middle], atol=2e-4)
    spectrum_error = np.abs(np.fft.rfft((ours[:16_000] - scipys[:16_000])[middle] * np.hanning(14_000)))
    assert spectrum_error.max() / 3_500 < 2e-3  # 3 500: a tone of amplitude 1 in this window


@pytest.mark.parametrize(("rate", "hz"), [(48_000, 9_000.0), (44_100, 12_345.0), (96_000, 30_000.0)])
def test_a_tone_above_the_new_band_does_not_alias(rate: int, hz: float) -> None:
    ours = convert(tone(hz, rate), rate, 16_000, [rate // 10])

    rms_db = 20 * np.log10(np.sqrt(np.mean(ours[1_000:15_000] ** 2)) / (0.5 / np.sqrt(2)))
    assert rms_db < -90


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    sizes=st.lists(st.integers(1, 9_000), min_size=1, max_size=12),
    length=st.integers(1, 20_000),
)
def test_pieces_of_any_size_give_what_one_piece_gives(rate: int, sizes: list[int], length: int) -> None:
    if min(sizes) < 50:
        length = min(length, 3_000)
    source = np.random.default_rng(length).uniform(-0.3, 0.3, length).astype(np.float32)

    whole = convert(source, rate, 16_000, [length])
    np.testing.assert_array_equal(convert(source, rate, 16_000, sizes), whole)
    assert abs(whole.size - length * 16_000 / rate) <= 1


def test_overshoot_of_a_full_scale_square_stays_in_range() -> None:
    square = np.sign(tone(441.0, 44_100)).astype(np.float32)

    assert np.abs(convert(square, 44_100, 16_000, [4_410])).max() == 1.0


def test_equal_rates_change_nothing() -> None:
    source = tone(440.0, 16_000)

    np.testing.assert_array_equal(convert(source, 16_000, 16_000, [777]), source)
