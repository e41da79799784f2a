"""Profiles: measured times of every block, a file that round-trips, and bad ones refused."""

import pytest

from runtime_edge.errors import BundleError, FormatError
from runtime_edge.inference.profile import Profile, measure_profile


@pytest.fixture(scope="module")
def profile(small_bundle):
    return measure_profile(small_bundle, "rpi4", runs=5)


def test_every_block_has_a_time_and_the_machine_is_named(profile, small_bundle):
    assert profile.blocks == small_bundle.manifest.info.blocks
    assert all(0 < ms <= p90 for ms, p90 in zip(profile.block_ms, profile.block_p90_ms, strict=True))
    assert "onnxruntime" in profile.machine["runtime"]


def test_it_round_trips(profile):
    assert Profile.from_json(profile.to_json(), "profile.json") == profile


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (b'"runs": 5', b'"runs": 0', "$.runs"),
        (b'"runs": 5', b'"runs": 5, "extra": 1', "extra"),
        (b"streamsplit.profile/1", b"streamsplit.profile/9", "$.format"),
        (b'"block-00",', b"", "equally long"),
        (b"{", b"[", "profile.json"),
    ],
)
def test_a_changed_file_is_refused_and_the_field_named(profile, old, new, part):
    data = profile.to_json()
    assert old in data

    with pytest.raises(FormatError, match=r"profile\.json") as caught:
        Profile.from_json(data.replace(old, new, 1), "profile.json")
    assert part in str(caught.value)


def test_a_variant_that_is_not_there_is_refused(small_bundle):
    with pytest.raises(BundleError, match="tflite-int8"):
        measure_profile(small_bundle, "rpi4", variant="tflite-int8", runs=1)
