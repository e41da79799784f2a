"""A head file survives a round trip, scores as scikit-learn does, and anything wrong is refused by field."""

import json
import re

import msgspec
import numpy as np
import pytest
from garbage import read_or_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logsumexp, softmax

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import HeadError, SignatureError
from runtime_edge.formats.records.head import MAX_HEAD_BYTES, Head, Validation, read_head, signature_of
from tools.earlier_formats import head_v1

MODEL = "sha256:" + "0123456789abcdef" * 4
LABELS, WIDTH = ("dog", "rain", "alarm"), 4
WEIGHTS = np.random.default_rng(0).normal(size=(3, WIDTH)).astype("<f4")
BIAS = np.array([0.5, -0.25, 0.0], "<f4")


def make(**changes):
    fields = {
        "encoder": "toy",
        "embedding_dim": WIDTH,
        "generations": (2, 3),
        "model": MODEL,
        "temperature": 1.0,
        "labels": LABELS,
        "scores_by": "softmax",
        "thresholds": (0.5, 0.4, 0.9),
        "validation": Validation(
            split="5 folds by clip",
            windows=40,
            groups=10,
            accuracy=0.9,
            group_accuracy=1.0,
            average_precision=0.95,
        ),
        "created_by": "test",
        "bias": BIAS.tobytes(),
        "weights": WEIGHTS.tobytes(),
    }
    return Head(**fields | changes)


def edited(**changes):
    return json.dumps(json.loads(make().to_json()) | changes).encode()


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1, max_size=30)
shares = st.floats(0, 1)
temperatures = st.floats(0.01, 100)


@st.composite
def heads(draw):
    labels = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    width = draw(st.integers(1, 8))
    values = st.floats(-1e6, 1e6, width=32)

    def floats(count):
        return np.array(draw(st.lists(values, min_size=count, max_size=count)), "<f4").tobytes()

    return make(
        labels=tuple(labels),
        embedding_dim=width,
        encoder=draw(names),
        generations=tuple(sorted(draw(st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1))))),
        scores_by=draw(st.sampled_from(["softmax", "sigmoid"])),
        thresholds=tuple(draw(st.lists(shares, min_size=len(labels), max_size=len(labels)))),
        validation=draw(st.sampled_from([None, make().validation])),
        model=draw(st.sampled_from([None, MODEL])),
        temperature=draw(temperatures),
        exit_temperatures=draw(st.dictionaries(names, temperatures, max_size=3)),
        background=draw(st.none() | st.sampled_from(labels)),
        min_energy=draw(st.none() | st.floats(-1e6, 1e6)),
        bias=floats(len(labels)),
        weights=floats(len(labels) * width),
    )


@settings(max_examples=60, deadline=None)
@given(heads())
def test_reading_what_was_written_gives_the_same_head_and_the_same_bytes(head):
    data = head.to_json()
    again = Head.from_json(data, "head.json")
    assert again == head
    assert again.to_json() == data
    assert json.loads(data)["format"] == "streamsplit.head/2"


@settings(max_examples=60, deadline=None)
@given(heads(), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_scipy_and_always_shares(head, seed):
    embeddings = np.random.default_rng(seed).normal(size=(3, head.embedding_dim))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    weights = np.frombuffer(head.weights, "<f4").reshape(len(head.labels), -1)
    logits = (embeddings.astype(np.float32) @ weights.T + np.frombuffer(head.bias, "<f4")).astype(np.float64)
    logits /= head.temperature
    expected = softmax(logits, axis=1) if head.scores_by == "softmax" else expit(logits)
    scores = head.scores(embeddings)
    assert scores.shape == expected.shape
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(head.scores(embeddings[1]), scores[1], atol=1e-5)


def test_an_exit_has_a_temperature_of_its_own_where_the_head_names_one():
    head, embedding = make(temperature=2.0, exit_temperatures={"stem": 4.0}), np.full(WIDTH, 0.5)
    logits = 0.5 * WEIGHTS.sum(1) + BIAS
    for cut, temperature in ((None, 2.0), ("down", 2.0), ("stem", 4.0)):
        np.testing.assert_allclose(head.scores(embedding, cut), softmax(logits / temperature), atol=1e-6)


def test_a_head_of_version_1_is_upgraded_and_scores_as_before():
    earlier = head_v1(make())
    head = Head.from_json(earlier, "head.json")
    assert head == make(model=None)
    assert Head.from_json(head.to_json(), "head.json") == head
    np.testing.assert_array_equal(head.scores(np.ones(WIDTH)), make().scores(np.ones(WIDTH)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 1.0}, "temperature"),
        ({"model": None}, "model"),
        ({"labels": ["dog", "rain"]}, "thresholds: 3 numbers for 2 labels"),
        ({"bias": "AAAA"}, "bias: 3 bytes, expected 12"),
    ],
)
def test_a_head_of_version_1_that_does_not_hold_together_is_refused_by_field(changes, message):
    with pytest.raises(HeadError, match=message) as caught:
        Head.from_json(head_v1(make(), **changes), "head.json")
    assert str(caught.value).startswith("head.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["model", "temperature", "bias", "labels"])
def test_a_field_that_is_missing_is_refused(field):
    fields = json.loads(make().to_json())
    del fields[field]
    with pytest.raises(HeadError, match=field):
        Head.from_json(json.dumps(fields).encode(), "head.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "streamsplit.head/3"}, r"head.json: .*\$\.format"),
        ({"model": "sha256:1"}, r"\$\.model"),
        ({"temperature": 0.0}, r"\$\.temperature"),
        ({"temperature": None}, r"\$\.temperature"),
        ({"exit_temperatures": {"stem": 1e9}}, r"\$\.exit_temperatures"),
        ({"background": "cat"}, "background: 'cat' is none of the labels"),
        ({"min_energy": 1e7}, r"\$\.min_energy"),
        ({"surprise": 1}, "surprise"),
        ({"labels": []}, r"\$\.labels"),
        ({"labels": ["dog", "dog", "rain"]}, "labels: a name appears twice"),
        ({"labels": ["dog\nrain", "b", "c"]}, r"\$\.labels"),
        ({"labels": ["dog", "rain"]}, "thresholds: 3 numbers for 2 labels"),
        ({"thresholds": [0.5, 0.5, 1.5]}, r"\$\.thresholds"),
        ({"generations": [3, 2]}, "generations: the first, 3, comes after the last, 2"),
        ({"generations": [0, 2]}, r"\$\.generations"),
        ({"embedding_dim": 5}, "weights: 48 bytes, expected 60"),
        ({"embedding_dim": 0}, r"\$\.embedding_dim"),
        ({"scores_by": "magic"}, r"\$\.scores_by"),
        ({"bias": "AAAA"}, "bias: 3 bytes, expected 12"),
        ({"weights": "not base64"}, r"\$\.weights"),
        ({"bias": msgspec.to_builtins(np.array([0, np.nan, 0], "<f4").tobytes())}, "bias: not all finite"),
        ({"bias": msgspec.to_builtins(np.array([0, 2e6, 0], "<f4").tobytes())}, "bias: not all finite"),
    ],
)
def test_what_does_not_hold_together_is_refused_by_file_and_field(changes, message):
    with pytest.raises(HeadError, match=message) as caught:
        Head.from_json(edited(**changes), "head.json")
    assert str(caught.value).startswith("head.json: ")
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400) | st.integers(0, 10_000).map(lambda n: make().to_json()[: n % 700]))
def test_garbage_gives_a_head_error_and_nothing_else(data):
    read = read_or_refused(Head.from_json, data, HeadError)
    assert read is None or read == make()


def test_sizes_are_bounded_before_they_are_read():
    with pytest.raises(HeadError, match=f"more than {MAX_HEAD_BYTES}"):
        Head.from_json(b" " * (MAX_HEAD_BYTES + 1), "head.json")
    wide, labels = 65_536, tuple("abcdefg")
    given = {"labels": labels, "thresholds": (0.5,) * 7, "bias": bytes(4 * 7), "validation": None}
    with pytest.raises(HeadError, match="use fewer labels"):
        make(embedding_dim=wide, weights=bytes(4 * 7 * wide), **given).to_json()


def test_a_head_of_another_encoder_or_width_says_so(small_bundle):
    info = small_bundle.manifest.info
    fitting = make(encoder=info.encoder.id, embedding_dim=6, weights=bytes(4 * 3 * 6))
    assert fitting.fits(info)
    fitting.check_fits(info, "head")
    with pytest.raises(HeadError, match=f"head: encoder: trained on .* toy, but {re.escape(info.encoder.id)} runs"):
        make().check_fits(info, "head")
    with pytest.raises(HeadError, match="head: embedding_dim: trained on embeddings of 4 values"):
        make(encoder=info.encoder.id).check_fits(info, "head")
    assert not make().fits(info)


def test_a_file_is_read_only_with_the_trusted_signature_beside_it(signing_key, tmp_path):
    path = tmp_path / "head.json"
    write_atomic(path, make().to_json())
    assert read_head(path) == make()
    with pytest.raises(SignatureError, match=r"head\.json\.minisig: missing"):
        read_head(path, signing_key.public)
    write_atomic(tmp_path / "head.json.minisig", signature_of(path.read_bytes(), signing_key).encode())
    assert read_head(path, signing_key.public) == make()
    path.write_bytes(path.read_bytes().replace(b"rain", b"raim"))
    with pytest.raises(SignatureError, match="changed"):
        read_head(path, signing_key.public)
    with pytest.raises(HeadError, match="cannot be read"):
        read_head(tmp_path / "missing.json")


def two_labels(**changes):
    """`dog` is where the first value is large, `background` where it is small."""
    weights = np.array([[4.0, 0.0], [-4.0, 0.0]], "<f4")
    fields = {
        "embedding_dim": 2, "labels": ("dog", "background"), "scores_by": "softmax", "thresholds": (0.5, 0.5),
        "bias": np.zeros(2, "<f4").tobytes(), "weights": weights.tobytes(), "temperature": 1.0,
        "exit_temperatures": {},
    }  # fmt: skip
    return make(**(fields | changes))


def test_the_background_is_never_detected():
    plain, head = two_labels(), two_labels(background="background")
    for value, without, detected in ((1.0, [0], [0]), (-1.0, [1], [])):
        scores = head.scores([value, 0.0])
        assert plain.detected([value, 0.0], scores) == without
        assert head.detected([value, 0.0], scores) == detected


def test_a_sound_with_too_little_energy_is_unknown_and_detected_as_nothing():
    head = two_labels(min_energy=float(logsumexp([2.0, -2.0])))
    for value, unknown in ((0.4, True), (0.6, False), (-0.6, False)):
        scores = head.scores([value, 0.0])
        assert head.is_unknown([value, 0.0]) == unknown
        assert head.detected([value, 0.0], scores) == ([] if unknown else [int(scores.argmax())])
    assert not head.is_unknown([0.4, 0.0], "stem"), "an exit's logits are smaller"
    assert not two_labels().is_unknown([0.0, 0.0])
