"""Suffixes of the last few generations, against the whole torch encoder."""

import numpy as np
import pytest
import torch
from toys import Tiny

from runtime_edge.errors import BundleError, FrameError
from runtime_edge.formats.codec import ENCODINGS, CutCodec
from runtime_edge.formats.wire import FrameHeader
from runtime_server.suffix.generations import Generations, cut_model


@pytest.fixture(scope="module")
def whole():
    return Tiny()


def header(cut, encoding, compressed=False):
    return FrameHeader(0, 0, 1, cut, ENCODINGS.index(encoding), compressed, 0.5)


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_prefix_wire_and_suffix_are_the_whole_encoder_at_every_cut(
    generations, small_bundle, sounds, activation, whole, encoding
):
    generation = generations.newest
    with torch.no_grad():
        expected = whole(torch.from_numpy(sounds)).numpy()
    for cut in small_bundle.manifest.info.cuts[1:]:
        codec, rows = CutCodec(cut, encoding), []
        for sound in sounds:
            payload, compressed = codec.encode(activation(sound, cut.index))
            rows.append(generation.decode(header(cut.index, encoding, compressed), payload))
        found = generation.complete(cut.index, torch.from_numpy(np.concatenate(rows))).numpy()
        if encoding == "float32":
            assert np.abs(found - expected).max() < 1e-4
        cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
        assert cosine.min() > (0.97 if encoding == "int8" else 0.9999), cut.name  # six numbers: int8 is coarse


@pytest.mark.parametrize(
    ("cut", "encoding", "payload", "reason"),
    [
        (99, "float32", b"", "cut 99, this bundle has"),
        (0, "int8", b"", "no int8 scales"),
        (1, "float32", b"1234", "payload has 4 bytes"),
        (1, "float32", None, "NaN or infinite"),
    ],
)
def test_frames_that_cannot_be_decoded_say_why(generations, small_bundle, cut, encoding, payload, reason):
    if payload is None:
        payload = np.full(small_bundle.manifest.info.cuts[cut].shape, np.nan, "<f4").tobytes()
    with pytest.raises(FrameError, match=reason):
        generations.newest.decode(header(cut, encoding), payload)


def test_only_the_last_few_are_kept_and_the_newest_is_by_number(tiny_encoder, numbered):
    known = Generations(tiny_encoder.graph, kept=2)
    for number in (1, 3, 2):
        known.add(numbered(number), tiny_encoder.tensors)
    assert known.newest.number == 3
    assert known.get(1) is None
    assert known.get(2).number == 2
    assert known.get(4) is None


def test_what_devices_are_told_to_run_is_kept_however_old(tiny_encoder, numbered):
    known = Generations(tiny_encoder.graph, kept=2)
    known.protect({1, 2})
    for number in range(1, 6):
        known.add(numbered(number), tiny_encoder.tensors)
    assert [generation.number for generation in known.kept()] == [1, 2, 4, 5]
    known.protect({2})
    assert [generation.number for generation in known.kept()] == [2, 4, 5]
    known.add(numbered(6), tiny_encoder.tensors)
    assert [generation.number for generation in known.kept()] == [2, 5, 6]


def test_each_generation_has_its_own_weights(generations, tiny_encoder, numbered, sounds, whole):
    changed = {name: value.copy() for name, value in tiny_encoder.tensors.items()}
    changed["head.weight"] = -changed["head.weight"]
    changed["head.bias"] = -changed["head.bias"]
    newer = generations.add(numbered(2), changed)
    sound = torch.from_numpy(sounds[:4])
    with torch.no_grad():
        expected = whole(sound)
    assert torch.allclose(generations.get(1).complete(0, sound), expected, atol=1e-5)
    assert torch.allclose(newer.complete(0, sound), -expected, atol=1e-5)
    changed["head.weight"][:] = 0.0
    assert torch.allclose(newer.complete(0, sound), -expected, atol=1e-5), "shares memory with the caller's arrays"


def test_weights_of_another_encoder_are_refused(tiny_encoder, small_bundle):
    wrong = dict(tiny_encoder.tensors)
    del wrong["head.weight"]
    with pytest.raises(BundleError, match=r"weights do not fit the encoder .*head\.weight"):
        cut_model(tiny_encoder.graph, small_bundle, wrong)
