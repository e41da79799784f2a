"""`ssc bench device`: every variant in a process of its own, with a meter that is made up and without."""

import itertools

import pytest
from click.testing import CliRunner

from runtime_edge.cli.bench_device_command import device
from runtime_edge.errors import UsageError
from runtime_edge.formats.records.device_bench import DeviceBench
from runtime_edge.inference.profile import read_profile
from runtime_edge.measure.variant_times import BenchSettings, bench_device

QUICK = BenchSettings(runs=2, rest_s=0.01, block_s=0.01)


class EveryReading:
    """Counts a joule each time it is read."""

    name = "a joule a reading"

    def __init__(self):
        self.count = itertools.count()

    def joules(self):
        return float(next(self.count))


def test_each_variant_that_can_run_is_measured_and_the_others_have_a_reason(small_bundle):
    found = bench_device(small_bundle, "rpi4", QUICK)
    assert DeviceBench.from_json(found.to_json(), "device.json") == found
    assert {one.variant for one in found.variants} == {"onnx-fp32"}
    assert {one.provider for one in found.variants} >= {"cpu"}
    assert min(one.threads for one in found.variants) == 1
    for one in found.variants:
        assert len(one.block_ms) == len(small_bundle.manifest.info.blocks)
        assert all(0 < ms <= p90 for ms, p90 in zip(one.block_ms, one.block_p90_ms, strict=True))
        assert one.block_mj is None
        assert one.memory_mb > 10
    measured = {(one.variant, one.provider) for one in found.variants}
    for provider in ("cpu", "xnnpack", "coreml"):
        assert (("onnx-fp32", provider) in measured) != (f"onnx-fp32, {provider}" in found.skipped)


def test_energy_is_what_the_meter_counts_above_idle(small_bundle):
    said = []
    found = bench_device(small_bundle, "rpi4", QUICK, EveryReading(), said.append)
    assert found.meter == "a joule a reading"
    assert found.idle_w > 1  # a joule in a hundredth of a second
    for one in found.variants:
        assert len(one.block_mj) == len(found.blocks)
        assert all(mj >= 0 for mj in one.block_mj)
    assert said[0].startswith("at rest")


def test_a_bundle_of_which_nothing_runs_says_why_in_one_line(bundle_copy):
    from runtime_edge.formats.bundle import open_bundle

    opened = open_bundle(bundle_copy)
    next(bundle_copy.rglob("model.onnx")).write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"none of its variants runs here: .*onnx-fp32, cpu"):
        bench_device(opened, "rpi4", QUICK)
    with pytest.raises(UsageError, match="--target rpi5: this bundle was compiled for m2, rpi4"):
        bench_device(opened, "rpi5", QUICK)


def test_the_command_writes_a_file_that_takes_the_place_of_a_profile(small_bundle, tmp_path):
    out = tmp_path / "device.json"
    arguments = [str(small_bundle.path), "--target", "rpi4", "-o", str(out), "--runs", "2", "--meter", "none"]
    done = CliRunner().invoke(device, arguments)
    assert done.exit_code == 0, done.output
    assert "no energy: none was asked for" in done.output
    assert all(cut.name in done.output for cut in small_bundle.manifest.info.cuts[1:])
    found, profile = DeviceBench.from_json(out.read_bytes(), "device.json"), read_profile(out)
    assert profile.block_ms == found.fastest().block_ms
    assert profile.blocks == small_bundle.manifest.info.blocks
    assert profile.machine["processor"] == found.machine["processor"]
    with pytest.raises(UsageError, match=r"device\.json: no variant 'onnx-int8'"):
        read_profile(out, "onnx-int8")
