"""A hostile bundle's self-test ends its child process and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import onnx
import pytest
from hostile_blocks import asks_for_memory, bundle_of, computes_for_ever

from runtime_edge.errors import SelfTestError
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.isolated_self_test import memory_bound, self_test_in_child

pytestmark = pytest.mark.integration


def self_test(bundle, **bounds):
    asyncio.run(self_test_in_child(bundle, "onnx-fp32", RuntimeOptions(), **bounds))


def test_a_good_bundle_passes(small_bundle):
    self_test(small_bundle)


def test_a_wrong_embedding_fails_with_the_childs_own_words(tmp_path):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        block (float[1,4] input) => (float[1,4] output) { output = Neg(input) }""")
    with pytest.raises(SelfTestError, match="self-test embedding is off"):
        self_test(bundle_of(model, tmp_path))


def test_a_graph_that_asks_for_100_gb_fails_within_its_bound(tmp_path):
    bundle = bundle_of(asks_for_memory(100 << 30), tmp_path)
    assert memory_bound(bundle, "onnx-fp32") < 1 << 30
    with pytest.raises(SelfTestError, match="self-test within"):
        self_test(bundle)


def test_a_graph_that_computes_for_hours_is_ended(tmp_path):
    with pytest.raises(SelfTestError, match="took more than 3 s"):
        self_test(bundle_of(computes_for_ever(), tmp_path), timeout_s=3.0)


def test_a_bundle_that_changed_meanwhile_is_not_run(bundle_copy: Path, small_bundle):
    (bundle_copy / "manifest.json").write_bytes((small_bundle.path / "manifest.json").read_bytes().replace(b"  ", b" "))
    from dataclasses import replace

    with pytest.raises(SelfTestError, match="changed while it was being tested"):
        self_test(replace(small_bundle, path=bundle_copy))
