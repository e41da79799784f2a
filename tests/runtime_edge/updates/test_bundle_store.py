"""What is fetched, installed and kept: it must be signed for its generation, and pass its self-test elsewhere first."""

from __future__ import annotations

import asyncio

import pytest
from hostile_blocks import asks_for_memory, block, bundle_of
from onnx import helper

from runtime_edge.errors import SelfTestError, SignatureError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import MANIFEST
from runtime_edge.formats.records.release import ReleasedBundle
from runtime_edge.updates.bundle_store import BundleStore, has_bundle

pytestmark = pytest.mark.integration


class Store:
    """The broker's object store with a single manifest in it."""

    def __init__(self, manifest):
        self.manifest, self.asked = manifest, []

    async def fetch(self, name, limit_bytes):
        self.asked.append(name)
        return self.manifest


@pytest.mark.parametrize("comment", ["generation:2 encoder:toys:Tiny", "generation:11", "no generation"])
def test_a_manifest_signed_for_another_generation_is_refused_before_anything_else_is_fetched(
    small_bundle, signing_key, tmp_path, comment
):
    manifest = (small_bundle.path / MANIFEST).read_bytes()
    signature = minisign.sign(manifest, signing_key, comment)
    release = ReleasedBundle(generation=1, manifest=small_bundle.digest, signature=signature)
    objects = Store(manifest)
    with pytest.raises(SignatureError, match="release 1: signed for another generation: the trusted comment says"):
        asyncio.run(
            BundleStore(tmp_path, signing_key.public).fetch(objects, release, "onnx-fp32", "rpi4", present=None)
        )
    assert objects.asked == [subjects.manifest_object(small_bundle.digest)]
    assert not (tmp_path / "bundles").exists()


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
