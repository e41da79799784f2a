"""Trained weights are arrays in a file, found by name or path, and come back as an encoder and its head."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.records.head import Head
from streamsplit_compile.cli.compile_commands import new
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder
from streamsplit_compile.encoder.published.trained import (
    TrainedWeights,
    find_trained,
    packed,
    read_trained,
    trained_names,
)

pytestmark = pytest.mark.integration

HEAD = Head(
    encoder="mobilenet_v3_small",
    embedding_dim=128,
    generations=(1, 1),
    model=None,
    temperature=1.0,
    labels=("go", "rain"),
    scores_by="softmax",
    thresholds=(0.5, 0.5),
    validation=None,
    created_by="test",
    bias=bytes(8),
    weights=bytes(4 * 256),
)


@pytest.fixture(scope="module")
def trained() -> TrainedWeights:
    state = new_encoder("mobilenet_v3_small", {"seed": 5})[0].state_dict()
    return TrainedWeights("mobilenet_v3_small", {}, "made of noise", packed(state), HEAD)


@pytest.fixture
def file(trained: TrainedWeights, tmp_path: Path) -> Path:
    trained.write(tmp_path / "weights.npz")
    return tmp_path / "weights.npz"


def test_weights_come_back_with_their_head_and_what_is_to_be_said_of_them(trained: TrainedWeights, file: Path) -> None:
    read = find_trained("mobilenet_v3_small", str(file))
    assert (read.config, read.attribution, read.head) == ({}, "made of noise", HEAD)
    module, config = read.build({})
    assert config == {}
    for name, value in new_encoder("mobilenet_v3_small", {"seed": 5})[0].state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_the_same_weights_give_the_same_bytes(trained: TrainedWeights, file: Path, tmp_path: Path) -> None:
    trained.write(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()


def test_what_does_not_fit_is_refused(file: Path) -> None:
    with pytest.raises(UsageError, match="weights of mobilenet_v3_small, not of resnet18"):
        find_trained("resnet18", str(file))
    with pytest.raises(UsageError, match=r"do not fit \{'width': 0\.75\}"):
        find_trained("mobilenet_v3_small", str(file)).build({"width": 0.75})


def test_what_is_not_there_is_told_with_what_is() -> None:
    with pytest.raises(UsageError, match="--weights birds: no such file, and no weights come with resnet18"):
        find_trained("resnet18", "birds")
    with pytest.raises(UsageError, match="unknown encoder 'vgg'"):
        find_trained("vgg", "birds")


def test_a_damaged_file_is_refused(trained: TrainedWeights, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    other.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FormatError, match=r"other\.npz: not a file of trained weights"):
        read_trained(other)
    with other.open("wb") as array:
        np.save(array, np.zeros(3))
    with pytest.raises(FormatError, match=r"other\.npz: not a file of trained weights"):
        read_trained(other)
    np.savez(other, something=np.zeros(3))
    with pytest.raises(FormatError, match=r"other\.npz: field 'about' does not say"):
        read_trained(other)
    poisoned = {**trained.tensors, "projection.bias": np.full(128, np.nan, np.float32)}
    dataclasses.replace(trained, tensors=poisoned).write(other)
    with pytest.raises(FormatError, match=r"projection\.bias: must be finite"):
        read_trained(other)


def test_a_file_that_unpacks_to_more_than_it_may_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, state=np.zeros(3))
    data = bytearray(path.read_bytes())
    size = data.rindex(b"PK\x01\x02") + 24
    data[size : size + 4] = (2 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"bomb\.npz: not a file of trained weights"):
        read_trained(path)


SHIPPED = "speech-and-sounds"
MOST_BYTES = 2_200_000


def test_the_shipped_weights_are_small_and_their_head_names_ten_words_and_ten_sounds() -> None:
    assert trained_names("mobilenet_v3_small") == [SHIPPED]
    trained = find_trained("mobilenet_v3_small", SHIPPED)
    assert trained.head is not None
    assert len(trained.head.labels) == 20
    assert {"yes", "stop", "rain", "dog_bark"} <= set(trained.head.labels)
    assert trained.head.validation is not None
    assert sum(value.nbytes for value in trained.tensors.values()) <= MOST_BYTES
    for named in ("ESC-10", "Speech Commands", "CC BY"):
        assert named in trained.attribution


def test_an_encoder_made_from_them_is_the_same_every_time_and_known_to_be_trained(tmp_path: Path) -> None:
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for file in files:
        done = CliRunner().invoke(new, ["mobilenet_v3_small", "--weights", SHIPPED, "-o", str(file), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["head"] == str(file.with_suffix(".head.json"))
    first, second = (load_encoder(file) for file in files)
    assert not first.untrained
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    head = Head.from_json(files[0].with_suffix(".head.json").read_bytes(), "a.head.json")
    assert (head.encoder, head.embedding_dim) == (first.id, first.embedding_dim)
