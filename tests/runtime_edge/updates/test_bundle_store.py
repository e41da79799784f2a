"""What is installed has passed its self-test elsewhere first; who signed it makes no difference."""

from __future__ import annotations

import pytest
from hostile_blocks import asks_for_memory, block, bundle_of
from onnx import helper

from runtime_edge.errors import SelfTestError
from runtime_edge.updates.bundle_store import BundleStore, has_bundle

pytestmark = pytest.mark.integration


def foreign():
    """A block with an operator that onnxruntime has and the compiler does not write."""
    return block([helper.make_node("FusedMatMul", ["input", "input"], ["output"], domain="com.microsoft")])


@pytest.mark.parametrize(
    ("model", "reason"),
    [(asks_for_memory(100 << 30), "self-test within"), (foreign(), "an operator of 'com.microsoft'")],
    ids=["memory", "operator"],
)
def test_a_signed_bundle_with_a_hostile_block_is_refused_and_nothing_has_changed(model, reason, signing_key, tmp_path):
    given = bundle_of(model, tmp_path / "given", signing_key)
    state = tmp_path / "state"

    with pytest.raises(SelfTestError, match=reason):
        BundleStore(state, signing_key.public).install_local(given.path)

    assert not has_bundle(state)
