"""Devices are grouped by what they hear: noise of one kind, at one level, whatever else sounds."""

import numpy as np
import pytest

from runtime_server.adaptation.alike import LATEST_WINDOWS, LEAST_WINDOWS, MAX_DEVICES, AlikeDevices, band_levels

SAMPLES = 16_000


@pytest.fixture
def random():
    return np.random.default_rng(4)


def hiss(random, level=0.1):
    return (level * random.standard_normal(SAMPLES)).astype(np.float32)


def rumble(random):
    return (0.02 * np.cumsum(random.standard_normal(SAMPLES))).astype(np.float32)


def hear(alike, device, windows, target="rpi4"):
    for window in windows:
        alike.hear(device, target, window)


def test_band_levels_are_those_of_a_tone():
    tone = np.sin(2 * np.pi * 1000 * np.arange(SAMPLES) / SAMPLES).astype(np.float32)
    levels = band_levels(tone)
    assert levels.shape == (16, 24)
    edges = np.geomspace(1 / 128, 1, 25) * 8000
    loudest = levels.mean(0).argmax()
    assert edges[loudest] <= 1000 <= edges[loudest + 1]
    np.testing.assert_allclose(band_levels(10 * tone)[:, loudest] - levels[:, loudest], 20.0, atol=1e-3)


def test_digital_silence_has_a_level():
    assert np.isfinite(band_levels(np.zeros(SAMPLES, np.float32))).all()


def test_devices_in_the_same_noise_are_a_group(random):
    alike = AlikeDevices()
    sounds = {"pi-1": hiss, "pi-2": rumble, "pi-3": hiss, "pi-4": rumble, "pi-5": lambda r: hiss(r, 1.0)}
    for _ in range(LEAST_WINDOWS):
        for device, sound in sounds.items():
            alike.hear(device, "rpi4", sound(random))
    founders = {device: alike.founder(device) for device in sounds}
    assert founders == {"pi-1": "pi-1", "pi-2": "pi-2", "pi-3": "pi-1", "pi-4": "pi-2", "pi-5": "pi-5"}


def test_too_little_was_heard_to_join(random):
    alike = AlikeDevices()
    hear(alike, "pi-1", [hiss(random) for _ in range(LEAST_WINDOWS)])
    hear(alike, "pi-2", [hiss(random) for _ in range(LEAST_WINDOWS - 1)])
    assert alike.founder("pi-2") == "pi-2"
    hear(alike, "pi-2", [hiss(random)])
    assert alike.founder("pi-2") == "pi-1"
    assert alike.founder("pi-9") == "pi-9", "never heard"


def test_targets_have_groups_of_their_own(random):
    alike = AlikeDevices()
    hear(alike, "pi-1", [hiss(random) for _ in range(LEAST_WINDOWS)])
    hear(alike, "mac", [hiss(random) for _ in range(LEAST_WINDOWS)], "m2")
    assert alike.founder("mac") == "mac"


def test_a_device_that_is_moved_changes_its_group(random):
    alike = AlikeDevices()
    for device, sound in (("pi-1", hiss), ("pi-2", rumble), ("pi-3", hiss)):
        hear(alike, device, [sound(random) for _ in range(LEAST_WINDOWS)])
    assert alike.founder("pi-3") == "pi-1"
    hear(alike, "pi-3", [rumble(random) for _ in range(LATEST_WINDOWS)])
    assert alike.founder("pi-3") == "pi-2"


def test_a_group_that_leaves_its_founder_forms_anew(random):
    alike = AlikeDevices()
    for device in ("pi-1", "pi-2", "pi-3"):
        hear(alike, device, [hiss(random) for _ in range(LEAST_WINDOWS)])
    hear(alike, "pi-1", [rumble(random) for _ in range(LATEST_WINDOWS)])
    for device in ("pi-2", "pi-3"):
        hear(alike, device, [hiss(random) for _ in range(LEAST_WINDOWS)])
    assert [alike.founder(device) for device in ("pi-1", "pi-2", "pi-3")] == ["pi-1", "pi-2", "pi-2"]


def test_those_heard_longest_ago_are_forgotten(random):
    alike = AlikeDevices()
    for device in ("pi-1", "pi-2"):
        hear(alike, device, [hiss(random) for _ in range(LEAST_WINDOWS)])
    assert alike.founder("pi-2") == "pi-1"
    window = hiss(random)
    for place in range(MAX_DEVICES - 1):
        alike.hear(f"other-{place}", "rpi4", window)
    assert alike.founder("pi-2") == "pi-2", "its founder is forgotten"
