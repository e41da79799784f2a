import importlib.util
import os

import msgspec
import pytest

from runtime_edge.errors import BundleError, MissingExtra
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.variants import choose_variant, runtime_options


@pytest.fixture
def manifest(small_bundle):
    """`manifest(names)`: the small bundle's manifest with these variants in every block."""

    def make(*names, **cost):
        original = small_bundle.manifest
        components = {}
        for block, component in original.components.items():
            info = component.variants["onnx-fp32"].executor_info.ssc
            found = {}
            for name in names:
                changed = msgspec.structs.replace(info, format=name.split("-")[0], precision=name.split("-")[1])
                executor = msgspec.structs.replace(component.variants["onnx-fp32"].executor_info, ssc=changed)
                found[name] = msgspec.structs.replace(component.variants["onnx-fp32"], executor_info=executor)
            components[block] = msgspec.structs.replace(component, variants=found)
        targets = {"board": msgspec.structs.replace(original.info.targets["rpi4"], **cost)}
        metadata = msgspec.structs.replace(
            original.additional_metadata, ssc=msgspec.structs.replace(original.info, targets=targets)
        )
        return msgspec.structs.replace(original, components=components, additional_metadata=metadata)

    return make


@pytest.fixture
def installed(monkeypatch):
    """`installed("onnx")`: only runtimes of these formats are there."""

    def only(*formats):
        modules = {"onnx": {"onnxruntime"}, "tflite": {"ai_edge_litert", "tflite_runtime"}}
        there = set().union(*(modules[name] for name in formats))
        monkeypatch.setattr(importlib.util, "find_spec", lambda module: module if module in there else None)

    return only


@pytest.mark.parametrize(
    ("formats", "names", "preferred", "expected"),
    [
        (("onnx", "tflite"), ("onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"), "tflite-int8", "tflite-int8"),
        (("onnx",), ("onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"), "tflite-int8", "onnx-int8"),
        (("onnx",), ("onnx-fp32", "onnx-fp16", "tflite-int8"), "tflite-int8", "onnx-fp32"),
        (("tflite",), ("onnx-fp32", "tflite-int8"), "onnx-fp32", "tflite-int8"),
    ],
)
def test_auto_takes_the_target_s_variant_or_the_next_best_that_can_run(
    manifest, installed, formats, names, preferred, expected
):
    installed(*formats)
    assert choose_variant(manifest(*names, variant=preferred), "auto", "board") == expected


def test_without_a_target_float32_is_taken(manifest, installed):
    installed("onnx", "tflite")
    names = ("onnx-int8", "onnx-fp32", "tflite-fp32")
    assert choose_variant(manifest(*names)) == choose_variant(manifest(*names), target="another") == "onnx-fp32"


@pytest.mark.parametrize(("variant", "extra"), [("onnx-fp32", "edge"), ("tflite-int8", "edge-tflite")])
def test_without_any_runtime_the_error_names_the_extra(manifest, installed, variant, extra):
    installed()
    with pytest.raises(MissingExtra, match=rf'pip install "streamsplit_audio-.*\[{extra}\]"'):
        choose_variant(manifest(variant, variant=variant), "auto", "board")


def test_a_variant_asked_for_must_be_there(manifest, installed):
    installed("onnx")
    found = manifest("onnx-fp32", "tflite-fp32")
    assert choose_variant(found, "tflite-fp32", "board") == "tflite-fp32"  # the backend says what is missing
    with pytest.raises(BundleError, match="no variant 'onnx-int8'"):
        choose_variant(found, "onnx-int8", "board")


def test_threads_and_providers_are_the_target_s(manifest, monkeypatch):
    found = manifest("onnx-fp32", threads=4, providers=("coreml", "cpu"))
    for processors, threads in ((8, 4), (2, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, count=processors: set(range(count)), raising=False)
        assert runtime_options(found, "board") == RuntimeOptions(threads, ("coreml", "cpu"))
    assert runtime_options(found, "board", threads=3).threads == 3
    assert runtime_options(found, "another") == RuntimeOptions()


def test_a_compiled_bundle_carries_its_targets_options(small_bundle):
    cost = small_bundle.manifest.info.targets
    assert (cost["rpi4"].threads, cost["rpi4"].providers) == (4, ("xnnpack", "cpu"))
    assert (cost["m2"].threads, cost["m2"].providers) == (4, ("cpu", "coreml"))
