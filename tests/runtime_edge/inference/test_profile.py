"""Profiles: measured times of every block, a file that round-trips, and bad ones refused."""

import msgspec
import pytest
from click.testing import CliRunner

from runtime_edge.cli import profile_command
from runtime_edge.errors import BundleError, FormatError
from runtime_edge.inference.profile import Profile, measure_profile, read_profile


@pytest.fixture(scope="module")
def profile(small_bundle):
    return measure_profile(small_bundle, "rpi4", runs=5)


def test_every_block_has_a_time_and_the_machine_is_named(profile, small_bundle):
    assert profile.blocks == small_bundle.manifest.info.blocks
    assert all(0 < ms <= p90 for ms, p90 in zip(profile.block_ms, profile.block_p90_ms, strict=True))
    assert "onnxruntime" in profile.machine["runtime"]
    assert profile.machine.keys() == {"system", "architecture", "processor", "python", "runtime", "front_end"}


def measured_on(profile, processor, architecture):
    return msgspec.structs.replace(profile, machine={"processor": processor, "architecture": architecture})


def test_a_profile_says_when_it_was_measured_on_another_processor(profile):
    assert measured_on(profile, "Raspberry Pi 4 Model B", "aarch64").elsewhere == ""
    assert measured_on(profile, "AMD EPYC", "x86_64").elsewhere == "AMD EPYC (x86_64)"
    assert measured_on(profile, "", "x86_64").elsewhere == "x86_64"
    assert msgspec.structs.replace(profile, machine={}).elsewhere == ""


def test_the_command_warns_of_another_processor_and_records_it(profile, small_bundle, tmp_path, monkeypatch):
    found = measured_on(profile, "AMD EPYC", "x86_64")
    found = msgspec.structs.replace(found, machine=found.machine | {"runtime": "onnxruntime"})
    monkeypatch.setattr(profile_command, "measure_profile", lambda *_: found)
    arguments = [str(small_bundle.path), "--target", "rpi4", "-o", str(tmp_path / "p.json")]
    done = CliRunner().invoke(profile_command.profile, arguments)
    assert "warning: measured on AMD EPYC (x86_64), which is not the target rpi4" in done.output
    kept = Profile.from_json((tmp_path / "p.json").read_bytes(), "p.json")
    assert kept.machine["processor"] == "AMD EPYC"


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


def test_energy_of_a_profile_is_of_each_block(profile, tmp_path):
    file = tmp_path / "profile.json"
    counted = msgspec.structs.replace(profile, block_mj=[1.0] * len(profile.blocks))
    file.write_bytes(counted.to_json())
    assert read_profile(file) == counted
    file.write_bytes(msgspec.structs.replace(profile, block_mj=[1.0]).to_json())
    with pytest.raises(FormatError, match=r"profile\.json: block_mj: 1 numbers"):
        read_profile(file)


def test_a_variant_that_is_not_there_is_refused(small_bundle):
    with pytest.raises(BundleError, match="tflite-int8"):
        measure_profile(small_bundle, "rpi4", variant="tflite-int8", runs=1)
