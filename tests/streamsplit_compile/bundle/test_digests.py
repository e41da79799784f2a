"""What names weights."""

import hashlib

import numpy as np
import pytest
from toys import Tiny

from streamsplit_compile.bundle.digests import combined_digest, tensor_digests, weights_digest


def test_the_digest_covers_names_types_shapes_and_values():
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    others = [
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"].reshape(3, 2), "b": tensors["b"]},
        {"a": tensors["a"].astype(np.float64), "b": tensors["b"]},
        {"a": tensors["a"] + 1, "b": tensors["b"]},
        {"a": tensors["a"]},
        {"a": tensors["b"], "b": tensors["a"]},
    ]
    digests = [weights_digest(item) for item in (tensors, *others)]
    assert len(set(digests)) == len(digests)
    assert weights_digest(dict(reversed(tensors.items()))) == digests[0]
    assert weights_digest({**tensors, "a": np.asfortranarray(tensors["a"])}) == digests[0]
    own = hashlib.sha256(b"<f4|(2,)|" + np.ones(2, "<f4").tobytes()).digest()
    assert weights_digest({"b": tensors["b"]}) == f"sha256:{hashlib.sha256(b'b|' + own).hexdigest()}"


def test_a_set_without_a_digest_of_each_is_refused():
    with pytest.raises(KeyError, match="c"):
        combined_digest(tensor_digests({"a": np.ones(2)}), ["a", "c"])


def test_digests_of_parameters_follow_names_and_values(small_bundle):
    digests = [
        small_bundle.manifest.components[block].additional_metadata.ssc.parameters
        for block in small_bundle.manifest.info.blocks
    ]
    assert len(set(digests)) == len(digests)
    by_hand = hashlib.sha256()
    for name in ("head.bias", "head.weight"):
        value = Tiny().state_dict()[name].numpy()
        own = hashlib.sha256(f"<f4|{value.shape}|".encode() + value.tobytes()).digest()
        by_hand.update(name.encode() + b"|" + own)
    assert digests[-1] == f"sha256:{by_hand.hexdigest()}"
