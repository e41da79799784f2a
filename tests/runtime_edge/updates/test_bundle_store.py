import asyncio

import pytest

from runtime_edge.errors import SignatureError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import MANIFEST
from runtime_edge.formats.records.release import ReleasedBundle
from runtime_edge.updates.bundle_store import BundleStore


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
    with pytest.raises(SignatureError, match="release 1: signed for another generation: a trusted comment that says"):
        asyncio.run(
            BundleStore(tmp_path, signing_key.public).fetch(objects, release, "onnx-fp32", "rpi4", present=None)
        )
    assert objects.asked == [subjects.manifest_object(small_bundle.digest)]
    assert not (tmp_path / "bundles").exists()
