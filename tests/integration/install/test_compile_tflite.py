"""The extra `compile-tflite`: bundles for both runtimes."""

import pytest

from runtime_edge.formats.bundle import open_bundle

EXTRAS = "compile-tflite"
# litert-torch needs transformers itself.
BRINGS = {"compile-tflite", "compile", "edge-tflite", "edge", "audio", "transformers"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_an_encoder_is_compiled_to_both_formats(toy_terminal):
    toy_terminal.types(
        "ssc compile encoder.pt --targets rpi4 --formats onnx,tflite -o bundle-tflite/",
        "--cuts log_mel,one,two --precision fp32,int8",
    )
    bundle = toy_terminal.directory / "bundle-tflite"
    for block in open_bundle(bundle).manifest.components.values():
        assert {"onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"} <= block.variants.keys()
    toy_terminal.environment.ssc("verify", bundle, "--encoder", toy_terminal.directory / "encoder.pt")
