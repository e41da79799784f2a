"""Recognisers find what is there, and nothing in noise."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest

from streamsplit_compile.audit.outlets import Arrived
from streamsplit_compile.audit.recogniser import attack_on, interval, standardised, target_recordings


def arrived(values):
    values = values.astype(np.float32)
    return Arrived(values, values.reshape(len(values), -1)[:, :6])


def spectra(spoken):
    """Magnitudes of the recordings as images (n, 1, 32, 4)."""
    parts = np.abs(np.fft.rfft(spoken.windows.reshape(-1, 4, 256), axis=2))[:, :, :128].reshape(-1, 4, 32, 4).sum(3)
    return parts.transpose(0, 2, 1)[:, None]


def test_words_and_speakers_in_spectra_are_recognised(spoken):
    found = attack_on(arrived(spectra(spoken)), spoken, seed=0)
    assert found.words.shape == (int(spoken.test.sum()),)
    assert found.words.mean() > 0.9
    assert found.speakers is not None
    assert found.speakers.mean() > 0.8


def test_noise_tells_no_more_than_chance(spoken):
    noise = np.random.default_rng(1).normal(size=(len(spoken.words), 2, 4, 4))
    assert attack_on(arrived(noise), spoken, seed=0).words.mean() < 0.85


@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 1, 40), (3, 9, 2)])
def test_vectors_sequences_and_images_can_be_attacked_and_a_seed_repeats(spoken, shape):
    values = np.random.default_rng(0).normal(size=(len(spoken.words), *shape))
    values[:, 0, 0, 0] += 4 * spoken.words
    first, again = (attack_on(arrived(values), spoken, seed=3) for _ in range(2))
    assert np.array_equal(first.words, again.words)
    assert first.words.mean() > 0.8


def test_without_enough_recordings_of_each_no_speaker_is_told_apart(spoken):
    few = dataclasses.replace(spoken, speakers=np.arange(len(spoken.speakers)))
    assert len(target_recordings(few)) == 0
    assert len(target_recordings(spoken)) == int(spoken.test.sum())


def test_values_are_standardised_by_channel_on_what_is_learnt_from(spoken):
    values = np.random.default_rng(0).normal(3.0, 2.0, (len(spoken.words), 2, 5, 3)).astype(np.float32)
    found = standardised(values, ~spoken.test)[~spoken.test]
    assert np.abs(found.mean((0, 2, 3))).max() < 1e-4
    assert np.abs(found.std((0, 2, 3)) - 1).max() < 1e-3


@pytest.mark.parametrize(("right", "count"), [(0, 20), (13, 20), (810, 810), (300, 810)])
def test_the_interval_is_wilsons(right, count):
    flags = np.arange(count) < right
    rate, low, high = interval([flags, flags])
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert rate == right / count
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-4)
