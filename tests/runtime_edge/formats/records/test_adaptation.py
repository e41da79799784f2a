"""An adaptation survives its bytes and its record, is small, and is refused by field when it does not hold together."""

import json

import msgspec
import numpy as np
import pytest
from example_records import MN04_NORMS, adaptation
from garbage import read_or_refused
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.errors import FormatError
from runtime_edge.formats.records.adaptation import MAX_ADAPTATION_BYTES, Adaptation, AdaptedLayer
from runtime_edge.formats.records.envelope import open_record, seal

names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1, max_size=30)
finite = st.integers(0, 0xFFFF).map(lambda bits: bits & 0xBFFF)
allowed = st.integers(0x2400, 0x5400)
"""Bits of a float16: any finite one, and one from 1/64 to 64."""


def edited(**changes):
    return json.dumps(json.loads(adaptation().to_json()) | changes).encode()


def edited_layer(**changes):
    first, *rest = json.loads(adaptation().to_json())["layers"]
    return edited(layers=[first | changes, *rest])


def base64(array):
    return msgspec.to_builtins(array.tobytes())


@st.composite
def layers(draw):
    found = []
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        scale, shift = np.array(draw(st.lists(st.tuples(allowed, finite), min_size=1, max_size=5)), "<u2").T
        found.append(AdaptedLayer(block=draw(names), name=name, scale=scale.tobytes(), shift=shift.tobytes()))
    return tuple(found)


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(1, 2**32 - 1))
def test_reading_what_was_written_gives_the_same_adaptation_and_the_same_bytes(layers, generation):
    before = adaptation(layers=layers, generation=generation)
    data = before.to_json()
    again = Adaptation.from_json(data, "adaptation")
    assert again == before
    assert again.to_json() == data
    assert again.digest == before.digest != adaptation(layers=layers, generation=generation, created_by="x").digest
    assert json.loads(data)["format"] == "streamsplit.adaptation/1"


def test_a_layer_gives_what_was_put_in_rounded_to_float16():
    layer = adaptation().layers[0]
    scale, shift = layer.arrays()
    np.testing.assert_array_equal(scale, np.frombuffer(layer.scale, "<f2"))
    np.testing.assert_array_equal(shift, np.frombuffer(layer.shift, "<f2"))
    assert (scale.dtype, shift.dtype) == (np.float32, np.float32)


def test_new_statistics_are_a_scale_and_a_shift():
    rng = np.random.default_rng(0)
    x, mean, new_mean, shift = rng.normal(size=(4, 100, 3))[:, :, :]
    variance, new_variance, scale = rng.uniform(0.5, 2, (3, 3))
    mean, new_mean, shift, eps = mean[0], new_mean[0], shift[0], 1e-5
    compiled = scale * (x - mean) / np.sqrt(variance + eps) + shift
    wanted = scale * (x - new_mean) / np.sqrt(new_variance + eps) + shift
    as_scale = np.sqrt((variance + eps) / (new_variance + eps))
    as_shift = shift - as_scale * shift + scale * (mean - new_mean) / np.sqrt(new_variance + eps)
    np.testing.assert_allclose(as_scale * compiled + as_shift, wanted)


def test_without_layers_it_takes_an_earlier_one_back():
    before = adaptation(layers=(), self_tests={})
    assert Adaptation.from_json(before.to_json(), "adaptation") == before


def test_an_adaptation_of_mn04_is_at_most_25_kb_as_a_record(signing_key):
    """4920 channels in 46 layers, of values that nothing packs better than any others."""
    rng = np.random.default_rng(0)
    bits = [
        (rng.integers(0x2400, 0x5401, channels, np.uint16), rng.integers(0, 1 << 16, channels, np.uint16) & 0xBFFF)
        for _, channels in MN04_NORMS
    ]
    layers = tuple(
        AdaptedLayer(block=name.rsplit(".", 3)[0], name=name, scale=scale.tobytes(), shift=shift.tobytes())
        for (name, _), (scale, shift) in zip(MN04_NORMS, bits, strict=True)
    )
    assert sum(channels for _, channels in MN04_NORMS) == 4920
    body = adaptation(layers=layers).to_json()
    record = seal("adaptation", "pi-1.rpi4", 1, body, signing_key)
    assert len(record) <= 25_000
    opened = open_record(record, "adaptation", "pi-1.rpi4", signing_key.public, "adaptation")
    assert Adaptation.from_json(opened.body, "adaptation").layers == layers


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (edited(format="streamsplit.adaptation/2"), r"\$\.format"),
        (edited(surprise=1), "surprise"),
        (edited(generation=0), r"\$\.generation"),
        (edited(model="sha256:1"), r"\$\.model"),
        (edited(layers=[]), "self_tests: at least one"),
        (edited(self_tests={}), "self_tests: at least one"),
        (edited(self_tests={"onnx-fp32": {"embedding": "AAA=", "tolerance": 1}}), "self_tests: onnx-fp32: the emb"),
        (edited(self_tests={"onnx-fp32": {"embedding": "", "tolerance": 1}}), "self_tests: onnx-fp32: the embedding"),
        (edited(self_tests={"onnx-fp32": {"embedding": "AACAfw==", "tolerance": 1}}), "self_tests: onnx-fp32"),
        (edited(self_tests={"onnx-fp32": {"embedding": "AAAAAA==", "tolerance": -1}}), "tolerance"),
        (edited(layers=json.loads(adaptation().to_json())["layers"] * 2), "layers: stem.norm stands twice"),
        (edited_layer(surprise=1), "surprise"),
        (edited_layer(name="a\nb"), "name"),
        (edited_layer(scale="AAA="), "layers: stem.norm: 2 bytes of scale and 4 of shift"),
        (edited_layer(scale="", shift=""), "layers: stem.norm: 0 bytes of scale"),
        (edited_layer(scale="AAAA", shift="AAAA"), "layers: stem.norm: not all finite float16"),
        (edited_layer(scale=base64(np.array([1, np.inf], "<f2"))), "layers: stem.norm: not all finite float16"),
        (edited_layer(scale=base64(np.array([1, -1], "<f2"))), "layers: stem.norm: scales from -1 to 1, allowed 1/64"),
        (edited_layer(scale=base64(np.array([1, 65], "<f2"))), "layers: stem.norm: scales from 1 to 65, allowed 1/64"),
        (edited_layer(shift=base64(np.array([np.nan, 1], "<f2"))), "layers: stem.norm: not all finite float16"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together_is_refused_by_file_and_field(data, message):
    with pytest.raises(FormatError, match=message) as caught:
        Adaptation.from_json(data, "adaptation x")
    assert str(caught.value).startswith("adaptation x: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["encoder", "generation", "model", "created_by", "self_tests", "layers"])
def test_a_field_that_is_missing_is_refused(field):
    fields = json.loads(adaptation().to_json())
    del fields[field]
    with pytest.raises(FormatError, match=field):
        Adaptation.from_json(json.dumps(fields).encode(), "adaptation")


def test_sizes_are_bounded_before_they_are_read_and_when_they_are_written():
    with pytest.raises(FormatError, match=f"more than {MAX_ADAPTATION_BYTES}"):
        Adaptation.from_json(b" " * (MAX_ADAPTATION_BYTES + 1), "adaptation")
    wide = AdaptedLayer(block="a", name="b", scale=np.ones(60_000, "<f2").tobytes(), shift=bytes(2 * 60_000))
    with pytest.raises(FormatError, match="adapt fewer of them"):
        adaptation(layers=(wide,)).to_json()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400) | st.integers(0, 10_000).map(lambda n: adaptation().to_json()[: n % 700]))
def test_garbage_gives_a_format_error_and_nothing_else(data):
    read = read_or_refused(Adaptation.from_json, data, FormatError)
    assert read is None or read == adaptation()
