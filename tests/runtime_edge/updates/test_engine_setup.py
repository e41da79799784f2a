"""The engine that settings ask for."""

from __future__ import annotations

from runtime_edge.config import DeviceConfig
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.updates.engine_setup import engine_for


def test_it_is_set_up_as_the_device_is_told(small_bundle, tmp_path):
    config = DeviceConfig(device="d", state=tmp_path, target="rpi4", threads=2, encoding="float16", max_memory_mb=64.0)
    first = engine_for(small_bundle, config)
    first.ready()
    assert (first.prefix.variant, first.prefix.options) == ("onnx-fp32", RuntimeOptions(2, ("xnnpack", "cpu")))
    following = engine_for(small_bundle, config, first)
    assert following.prefix.buffers is first.prefix.buffers
