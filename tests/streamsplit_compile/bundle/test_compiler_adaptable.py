"""Bundles whose normalisation layers devices can adapt."""

from dataclasses import replace

import pytest
from shapes import WINDOW, Linear, make
from toys import Tiny

from runtime_edge.errors import UsageError
from runtime_edge.formats.graphs.onnx_norms import norms_of
from streamsplit_compile.bundle.calibrate import calibration_set_for
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder, recompile
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import from_module

pytestmark = pytest.mark.integration

OPTIONS = CompileOptions([load_target("rpi4")], cuts="stem,down,residual", calibration_windows=4)


def test_norms_of_a_later_generation_can_be_adapted_as_well(adaptable_bundle, tmp_path):
    tensors = {name: value.detach().numpy() for name, value in Tiny(seed=1).state_dict().items()}
    windows = calibration_set_for(adaptable_bundle.manifest.info, None).windows[:2]
    later = recompile(adaptable_bundle, tensors, tmp_path / "later", generation=2, windows=windows, reference=None)
    assert later.manifest.info.adaptable
    for block in later.manifest.info.blocks:
        for variant in ("onnx-fp32", "onnx-fp16", "onnx-int8"):
            noted = [norms_of(bundle.block_bytes(block, variant), block) for bundle in (adaptable_bundle, later)]
            assert noted[0] == noted[1]


def test_adaptable_needs_onnx_and_folded_norms_and_says_if_there_are_none(tiny_encoder, tmp_path):
    options = replace(OPTIONS, adaptable=True)
    with pytest.raises(UsageError, match="--adaptable: only ONNX files"):
        compile_encoder(tiny_encoder, replace(options, formats=("tflite",)), tmp_path / "a")
    with pytest.raises(UsageError, match="keep_norms leaves them; give one of the two"):
        compile_encoder(tiny_encoder, replace(options, keep_norms=True), tmp_path / "a")
    module, said = make(Linear), []
    module.sample_rate, module.window_samples = 4000, WINDOW
    plain = from_module("linear", {}, module, None)
    compile_encoder(plain, replace(options, cuts="auto"), tmp_path / "b", notice=said.append)
    assert any("nothing can be adapted" in line for line in said)
