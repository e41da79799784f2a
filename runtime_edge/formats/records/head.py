"""The head, a small linear layer that turns an embedding into labels with scores (docs/events.md).

A head (`streamsplit.head/2`, JSON, at most 2 MiB) is a file of its own, like a splitter table: trained on the
server from a few labelled windows (`ssc server label`), signed, and swapped on its own.

    head = Head.from_json(data, "head.json")
    head.check_fits(manifest.info, "head.json")
    head.scores(embeddings)                     # (windows, labels) in [0, 1]

`Head.from_json(head.to_json(), ...) == head`; heads of version 1 are upgraded when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from runtime_edge.base.files import read_bounded, write_atomic
from runtime_edge.errors import HeadError, SignatureError
from runtime_edge.formats import minisign
from runtime_edge.formats.manifest import BundleInfo, Digest, Generation
from runtime_edge.formats.minisign import signature_path
from runtime_edge.formats.strict import Name, Strict, decode

MAX_HEAD_BYTES = 2 << 20
"""Enough for a thousand labels of 384 values. Until 0.1.0 it was a quarter, and such devices refuse larger heads."""

_LARGEST = 1e6
Array = npt.NDArray[np.float32]
Share = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0.01, le=100)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]


class Validation(Strict, frozen=True):
    """How good a head was on windows that it was not fitted to."""

    split: Name
    """How windows were held out, such as `5 folds by clip`."""
    windows: Count
    groups: Count
    """Number of clips or events; the windows of one are held out together."""
    accuracy: Share
    """Share of windows whose labels were all right."""
    group_accuracy: Share
    """Share of groups whose labels were all right, by the mean score of their windows."""
    average_precision: Share
    """Mean average precision over the labels."""


class _Common(Strict, frozen=True, kw_only=True):
    """The fields that both versions share."""

    encoder: Name
    """Id of the encoder whose embeddings it takes."""
    embedding_dim: Annotated[int, Meta(ge=1, le=1 << 16)]
    generations: tuple[Generation, Generation]
    """First and last generation of the embeddings it was trained on."""
    labels: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=4096)]
    scores_by: Literal["softmax", "sigmoid"]
    """`softmax`: one label per window, scores add up to 1. `sigmoid`: any number of labels."""
    thresholds: tuple[Share, ...]
    """The score from which each label counts as detected."""
    validation: Validation | None
    """None if there was too little data to hold anything out."""
    created_by: Name
    bias: bytes
    """float32[labels], little-endian."""
    weights: bytes
    """float32[labels, embedding_dim], little-endian, in row-major order."""


class _Version1(_Common, frozen=True, kw_only=True):
    """The file until 0.1.0."""

    format: Literal["streamsplit.head/1"] = "streamsplit.head/1"


class _AnyVersion(msgspec.Struct):
    format: str = "streamsplit.head/1"


class Head(_Common, frozen=True, kw_only=True):
    """A whole head file. Building an inconsistent one raises HeadError naming the field."""

    format: Literal["streamsplit.head/2"] = "streamsplit.head/2"
    model: Digest | None
    """The model whose embeddings it was fitted to, at the last of `generations` (`model_id.model_digest`); frames carry
    the first 8 bytes. None in a head of version 1, which does not say."""
    temperature: Temperature
    """Logits are divided by it, so that scores are probabilities."""
    exit_temperatures: Annotated[dict[Name, Temperature], Meta(max_length=256)] = msgspec.field(default_factory=dict)
    """The temperature for embeddings from the exit at a cut, by the cut's name; for cuts not named here, `temperature`
    applies."""
    background: Name | None = None
    """The label that stands for everything else: it is never detected, and results leave it out."""
    min_energy: Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)] | None = None
    """A sound is none of the labels if the `ln sum exp` of its logits is lower (Liu et al. 2020). Exits are not
    checked: their embeddings have smaller logits."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise HeadError(problem)

    @classmethod
    def from_json(cls, data: bytes, source: str) -> Head:
        """Read and check a head of either version. Raises HeadError, one line that names `source` and the field."""
        version = decode(data, _AnyVersion, source, MAX_HEAD_BYTES, HeadError).format
        if version != "streamsplit.head/1":
            return decode(data, cls, source, MAX_HEAD_BYTES, HeadError)
        earlier = decode(data, _Version1, source, MAX_HEAD_BYTES, HeadError)
        try:
            fields = {name: getattr(earlier, name) for name in _Common.__struct_fields__}
            return cls(**fields, model=None, temperature=1.0)
        except HeadError as exc:
            raise HeadError(f"{source}: {exc}") from None

    def to_json(self) -> bytes:
        """JSON with one field per line, so that people can read all but the weights. Raises HeadError if too large."""
        names = sorted(self.__struct_fields__, key=lambda name: (name != "format", name in ("bias", "weights")))
        fields = [f"{_json(name)}:{_json(getattr(self, name))}" for name in names]
        data = ("{" + ",\n ".join(fields) + "}\n").encode()
        if len(data) > MAX_HEAD_BYTES:
            raise HeadError(
                f"weights: {len(self.labels)} labels of {self.embedding_dim} values make {len(data)} bytes, a head "
                f"has at most {MAX_HEAD_BYTES}; use fewer labels"
            )
        return data

    def fits(self, info: BundleInfo) -> bool:
        """Whether a bundle gives the embeddings this head takes."""
        return (self.encoder, self.embedding_dim) == (info.encoder.id, info.encoder.embedding_dim)

    def check_fits(self, info: BundleInfo, source: str) -> None:
        """Raise HeadError, naming `source` and the field, unless `fits`."""
        if self.encoder != info.encoder.id:
            raise HeadError(
                f"{source}: encoder: trained on embeddings of {self.encoder}, but {info.encoder.id} runs here"
            )
        if not self.fits(info):
            raise HeadError(
                f"{source}: embedding_dim: trained on embeddings of {self.embedding_dim} values, but those of this "
                f"{info.encoder.id} have {info.encoder.embedding_dim}"
            )

    def scores(self, embeddings: npt.ArrayLike, exit_cut: str | None = None) -> Array:
        """Scores (..., labels) float32 in [0, 1] of embeddings (..., embedding_dim), the encoder's or an exit's."""
        logits: npt.NDArray[np.floating[Any]] = self.logits(embeddings)
        temperature = self.temperature
        if exit_cut is not None:
            temperature = self.exit_temperatures.get(exit_cut, temperature)
        if temperature != 1.0:
            logits = (
                np.asarray(logits, np.float64) / temperature
            )  # float32 would round large ones before they are compared
        if self.scores_by == "sigmoid":
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)  # never overflows
        grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(grown / grown.sum(axis=-1, keepdims=True), np.float32)

    def is_unknown(self, embedding: npt.ArrayLike, exit_cut: str | None = None) -> bool:
        """Whether one window's embedding (d,) is of a sound that is none of the labels."""
        if self.min_energy is None or exit_cut is not None:
            return False
        return bool(np.logaddexp.reduce(self.logits(embedding).astype(np.float64)) < self.min_energy)

    def detected(self, embedding: npt.ArrayLike, scores: Array, exit_cut: str | None = None) -> list[int]:
        """Indices of the labels that one window's embedding (d,) and scores (labels,) detect, best first."""
        return [] if self.is_unknown(embedding, exit_cut) else self.reached(scores)

    def reached(self, scores: Array) -> list[int]:
        """Indices of the labels whose scores (labels,) reach their thresholds, best first, without the background."""
        return [
            place
            for place in np.argsort(-scores, kind="stable").tolist()
            if scores[place] >= self.thresholds[place] and self.labels[place] != self.background
        ]

    def logits(self, embeddings: npt.ArrayLike) -> Array:
        """(..., labels) float32 of embeddings (..., embedding_dim), before any temperature."""
        weights = np.frombuffer(self.weights, "<f4").reshape(len(self.labels), self.embedding_dim)
        return np.asarray(np.asarray(embeddings, np.float32) @ weights.T + np.frombuffer(self.bias, "<f4"))


def entropy(scores: Array, scores_by: str) -> float:
    """Entropy of one window's scores (labels,) as a share of the largest possible, in [0, 1].

    If labels do not exclude each other, it is the mean over the labels.
    """
    chances = np.clip(np.asarray(scores, np.float64), 1e-12, 1 - 1e-12)
    if scores_by == "softmax":
        return float(-(chances @ np.log(chances)) / max(np.log(len(chances)), 1e-12))
    either = chances * np.log(chances) + (1 - chances) * np.log1p(-chances)
    return float(-either.mean() / np.log(2))


def signature_of(text: bytes, key: minisign.SecretKey) -> str:
    """The contents of `head.json.minisig`."""
    return minisign.sign(text, key, "head")


def write_head(path: Path, head: Head, key: minisign.SecretKey | None = None) -> None:
    """Write a head file, and with a key its signature beside it. Raises HeadError if it is too large."""
    data = head.to_json()
    write_atomic(path, data)
    if key is not None:
        write_atomic(signature_path(path), signature_of(data, key).encode())


def read_head(path: Path, trusted: minisign.PublicKey | None = None) -> Head:
    """Read a head file; with `trusted`, only if `<path>.minisig` holds that key's signature.

    Raises SignatureError or HeadError.
    """
    data = read_bounded(path, MAX_HEAD_BYTES, HeadError)
    if trusted is not None:
        signature = signature_path(path)
        if not signature.exists():
            raise SignatureError(
                f"{signature}: missing, but the signature of key {trusted.hex_id} is required; sign with it "
                "(--key), or take what its owner has signed"
            )
        minisign.verify(data, minisign.read_signature(signature), trusted, str(signature))
    return Head.from_json(data, str(path))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _problems(head: Head) -> Iterator[str]:
    """What msgspec's types cannot express."""
    count = len(head.labels)
    if len(set(head.labels)) != count:
        yield "labels: a name appears twice"
    if len(head.thresholds) != count:
        yield f"thresholds: {len(head.thresholds)} numbers for {count} labels"
    if head.background is not None and head.background not in head.labels:
        yield f"background: {head.background!r} is none of the labels"
    if head.generations[0] > head.generations[1]:
        yield f"generations: the first, {head.generations[0]}, comes after the last, {head.generations[1]}"
    for name, values in (("bias", count), ("weights", count * head.embedding_dim)):
        data: bytes = getattr(head, name)
        if len(data) != 4 * values:
            yield f"{name}: {len(data)} bytes, expected {4 * values}"
        if len(data) % 4 == 0 and not (np.abs(np.frombuffer(data, "<f4")) <= _LARGEST).all():
            yield f"{name}: not all finite and within {_LARGEST:g}"
