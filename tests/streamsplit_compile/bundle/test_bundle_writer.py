import pytest

from runtime_edge.errors import BundleError, SignatureError
from runtime_edge.formats import minisign
from runtime_edge.formats.bundle import MANIFEST, open_bundle
from streamsplit_compile.bundle.bundle_writer import renew_signature

OTHER = minisign.SecretKey(b"\1" * 8, bytes(32))


@pytest.fixture
def copy(bundle_copy):
    return open_bundle(bundle_copy)


def test_a_bundle_is_signed_again_with_another_key_and_stays_the_same(copy, signing_key):
    assert not renew_signature(copy, signing_key), "this key has signed it"
    assert renew_signature(copy, OTHER)
    again = open_bundle(copy.path, OTHER.public)
    assert (again.digest, again.signed_by) == (copy.digest, "generation:1 encoder:toys:Tiny")
    assert not renew_signature(copy, OTHER)
    with pytest.raises(SignatureError, match="is trusted"):
        open_bundle(copy.path, signing_key.public)


def test_a_manifest_that_has_changed_since_it_was_opened_is_not_signed(copy):
    path = copy.path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"toys:Tiny"', b'"toys:Tuny"'))
    with pytest.raises(BundleError, match="has changed since it was opened"):
        renew_signature(copy, OTHER)
    with pytest.raises(SignatureError):
        open_bundle(copy.path, OTHER.public)
