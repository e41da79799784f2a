"""Formats and precisions of a whole bundle: each is made, runs, is proved, and survives a recompile."""

import numpy as np
import pytest

from runtime_edge.errors import UsageError
from runtime_edge.formats.graphs.block_check import check_block
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle import measure, parity
from streamsplit_compile.bundle.blocks import split_variant
from streamsplit_compile.bundle.calibrate import calibration_windows
from streamsplit_compile.bundle.compiler import CompileOptions, bundle_variants, compile_encoder, recompile
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.segment import split
from streamsplit_compile.encoder.selection import cuts_of
from streamsplit_compile.lowering.artifact_formats import FORMATS, PRECISIONS, variant_name

pytestmark = pytest.mark.integration

pytest.importorskip("litert_torch", reason="the TFLite converter is not installed: extra compile-tflite")
ALL = {variant_name(name, precision) for name in FORMATS for precision in PRECISIONS}


@pytest.fixture(scope="module")
def bundle(tiny_encoder, tmp_path_factory):
    options = CompileOptions(
        [load_target("rpi4")], "down", formats=FORMATS, precisions=PRECISIONS, calibration_windows=8
    )
    return compile_encoder(tiny_encoder, options, tmp_path_factory.mktemp("variants") / "bundle")


def windows_of(bundle, count=4):
    front_end = bundle.manifest.info.front_end
    rate, window, hop = front_end.sample_rate, front_end.window_samples, front_end.hop_samples
    return calibration_windows(None, rate, window, hop, count, 3)[0]


def test_every_variant_of_every_block_is_there_and_float32_comes_first(bundle):
    variants = bundle_variants(bundle.manifest)

    assert set(variants) == ALL
    assert variants[0] == "onnx-fp32"
    for block in bundle.manifest.components.values():
        assert set(block.variants) == ALL


@pytest.mark.parametrize("variant", sorted(ALL))
def test_devices_admit_every_block_that_the_compiler_writes(bundle, variant):
    for block in bundle.manifest.info.blocks:
        check_block(variant.split("-")[0], bundle.block_bytes(block, variant), block)


@pytest.mark.parametrize("variant", sorted(ALL))
def test_a_variant_runs_on_the_device_passes_its_self_test_and_is_near_the_encoder(bundle, variant):
    prefix, exact = Prefix(bundle, variant), Prefix(bundle)
    prefix.self_test()
    limit = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.9, "auto": 0.9}[variant.split("-")[1]]

    cosines = [float(prefix.embed(window) @ exact.embed(window)) for window in windows_of(bundle)]

    assert np.median(cosines) >= limit


def test_parity_is_measured_for_each_variant_and_float32_within_its_limit(bundle):
    found = bundle.manifest.info.parity

    assert set(found) == ALL
    cuts = len(bundle.manifest.info.cuts)
    for name, numbers in found.items():
        assert len(numbers.cuts) == cuts
        assert [set(found.wire) for found in numbers.cuts[1:]] == [{"float32", "float16", "int8"}] * (cuts - 1)
        assert numbers.cuts[0].prefix.max_abs_error == 0.0
        last = numbers.cuts[-1]
        assert last.prefix.max_abs_error == last.wire["float32"].max_abs_error
        if name.endswith("fp32"):
            assert max(numbers.max_abs_error) <= 1e-4


def test_new_weights_reach_every_variant_of_the_changed_block_alone(bundle, tiny_encoder, tmp_path):
    tensors = dict(tiny_encoder.tensors)
    last = bundle.manifest.info.blocks[-1]
    name = next(name for name in reversed(tensors) if tensors[name].ndim == 2)
    tensors[name] = (tensors[name] * 1.5).astype(np.float32)

    new = recompile(bundle, tensors, tmp_path / "new", generation=2, windows=windows_of(bundle), reference=None)

    for block in bundle.manifest.info.blocks:
        for variant in ALL:
            same = new.manifest.variant(block, variant).file == bundle.manifest.variant(block, variant).file
            assert same == (block != last), (block, variant)
    window = windows_of(bundle)[0]
    expected = Prefix(new).embed(window)
    assert np.allclose(Prefix(new, "tflite-fp32").embed(window), expected, atol=1e-4)
    assert not np.allclose(expected, Prefix(bundle).embed(window), atol=1e-3)


def test_auto_puts_blocks_back_into_float32_until_the_embedding_is_near_enough(
    bundle, tiny_encoder, tmp_path, monkeypatch
):
    monkeypatch.setitem(parity.COSINE_FLOORS, "auto", 1.1)  # never near enough: every block must go back

    segments = split(tiny_encoder.graph, cuts_of(tiny_encoder.graph.candidates, bundle.manifest, "bundle"))
    manifest, _ = measure.settle(
        bundle.path,
        bundle.manifest,
        "onnx-auto",
        bundle.manifest.info.cuts,
        windows_of(bundle),
        parity.Prover(segments, windows_of(bundle)),
        lambda what, done, total: None,
    )

    for block in manifest.info.blocks:
        assert manifest.variant(block, "onnx-auto").precision == "fp32"
        assert manifest.variant(block, "onnx-auto").file == manifest.variant(block, "onnx-fp32").file


def test_a_shortfall_names_the_variant_and_the_block(bundle, monkeypatch):
    monkeypatch.setitem(parity.COSINE_FLOORS, "int8", 1.1)

    lines = parity.shortfalls(bundle.manifest.info.blocks, bundle.manifest.info.parity)

    assert len(lines) == 2
    assert all("block-" in line and "int8" in line for line in lines)


def test_names_of_variants_are_taken_apart_or_refused():
    assert split_variant("tflite-int8") == ("tflite", "int8")
    with pytest.raises(Exception, match="coreml-fp32"):
        split_variant("coreml-fp32")


def test_int8_without_calibration_windows_is_refused(bundle):
    from streamsplit_compile.lowering.artifact_formats import to_precision

    with pytest.raises(UsageError, match="calibration"):
        to_precision("onnx", bundle.block_bytes(bundle.manifest.info.blocks[-1], "onnx-fp32"), "int8")
