import numpy as np
import pytest

from tools.corruptions import CHANGES, CORRUPTIONS, LOW_PASS_HZ, RATE_HZ, RT60_S, SEVERITIES, SNR_DB, changes

VOICE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, RATE_HZ).astype(np.float32)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_same_seed_is_the_same_sound_within_full_scale(kind, severity):
    one, other = (CORRUPTIONS[kind](NOISE, severity, 7) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert (one.shape, one.dtype) == (NOISE.shape, np.float32)
    assert np.abs(one).max() <= 1
    assert not np.array_equal(one, NOISE)


@pytest.mark.parametrize("kind", ["pink noise", "babble"])
def test_noise_is_as_far_below_the_recording_as_it_says(kind):
    for severity, snr_db in zip(SEVERITIES, SNR_DB, strict=True):
        added = CORRUPTIONS[kind](VOICE, severity, 1).astype(np.float64) - VOICE
        assert 10 * np.log10(np.mean(VOICE**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.3)


def test_noise_of_another_seed_is_another_noise():
    for kind in ("pink noise", "babble", "room"):
        assert not np.array_equal(CORRUPTIONS[kind](VOICE, 3, 1), CORRUPTIONS[kind](VOICE, 3, 2))


def test_nothing_is_left_far_above_the_band():
    for severity, limit_hz in zip(SEVERITIES, LOW_PASS_HZ, strict=True):
        spectrum = np.abs(np.fft.rfft(CORRUPTIONS["low-pass"](NOISE, severity, 0))) ** 2
        bands = np.fft.rfftfreq(RATE_HZ, 1 / RATE_HZ)
        assert spectrum[bands > 1.25 * limit_hz].sum() < 0.05 * spectrum.sum()


def test_an_echo_decays_as_fast_as_it_says():
    click = np.zeros(2 * RATE_HZ, np.float32)
    click[0] = 1.0
    for severity, decay_s in zip(SEVERITIES, RT60_S, strict=True):
        echo = CORRUPTIONS["room"](click, severity, 0).astype(np.float64)[1:]
        half = int(decay_s * RATE_HZ / 2)
        early, late = (np.mean(echo[start : start + half // 5] ** 2) for start in (0, half))
        assert 10 * np.log10(early / late) == pytest.approx(30, abs=3)


def test_what_is_too_loud_is_clipped_the_more_the_louder():
    shares = [np.mean(np.abs(CORRUPTIONS["too loud"](VOICE, severity, 0)) >= 1.0) for severity in SEVERITIES]
    assert shares == sorted(shares)
    assert shares[0] < 0.05 < 0.8 < shares[-1]


def test_a_stream_that_changes_begins_and_ends_clean_and_has_equal_parts():
    found = changes(60)
    assert found[:10] == found[-10:] == [""] * 10
    assert [found[place] for place in range(5, 60, 10)] == list(CHANGES)
    assert set(CHANGES) - {""} <= CORRUPTIONS.keys()
