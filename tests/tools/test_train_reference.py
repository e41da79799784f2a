"""Encoders trained by `tools.train_reference`: seeded, resumable, judged on recordings they never saw."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from runtime_edge.errors import UsageError
from streamsplit_compile.encoder.encoders import new_encoder
from streamsplit_compile.encoder.published.trained import find_trained
from tools.reference.corpus import HELD_OUT_FOLD, Corpus, load_corpus
from tools.reference.crops import augmented, crops, windows
from tools.reference.training import Course, Recipe, split
from tools.train_reference import judge, main, trained_weights

pytestmark = pytest.mark.integration

RATE = 16_000
SHORT = Recipe(epochs=2, batch=8)
FEW = 4
"""Recordings of each class on which the shipped weights are asked."""


def write_set(folder: Path, kinds: dict[str, float], seconds: float) -> None:
    """Two sources of each kind in each fold: a tone, with a silent end."""
    rng = np.random.default_rng(0)
    lines = ["filename,class,fold"]
    for kind, hertz in kinds.items():
        (folder / kind).mkdir(parents=True)
        for fold in range(1, 6):
            for take in range(2):
                name = f"{kind}/{fold}{take}-{hertz:.0f}.flac"
                time = np.arange(round(seconds * RATE)) / RATE
                audio = 0.3 * np.sin(2 * np.pi * hertz * time) + 0.01 * rng.standard_normal(len(time))
                soundfile.write(folder / name, np.where(time < 2.0, audio, 0.0), RATE)
                lines.append(f"{name},{kind},{fold}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recordings")
    write_set(root / "esc10", {"rain": 400.0, "rooster": 3000.0}, 3.5)
    write_set(root / "speech_commands", {"go": 150.0, "stop": 1200.0}, 0.8)
    return root


@pytest.fixture(scope="module")
def corpus(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    tables = [recordings / name / "labels.csv" for name in ("esc10", "speech_commands")]
    return load_corpus(tmp_path_factory.mktemp("cache"), new_encoder("mobilenet_v3_small")[0], tables)


def finished(corpus: Corpus, work: Path, recipe: Recipe = SHORT, until: int | None = None) -> Course:
    course = Course(new_encoder("mobilenet_v3_small")[0], corpus, recipe, work, clock=lambda: 0.0)
    course.run(note=lambda _: None, until=until)
    return course


def test_a_crop_of_the_image_is_the_image_of_the_crop(recordings: Path, corpus: Corpus) -> None:
    encoder = new_encoder("mobilenet_v3_small")[0]
    audio, _ = soundfile.read(recordings / "esc10" / "rain" / "10-400.flac", dtype="float32")
    cropped = encoder.log_mel(torch.from_numpy(audio[8000:24000])[None])[0, 0]
    images, owners = windows(corpus, np.array([0]), encoder.front_end.frames, 50)
    torch.testing.assert_close(torch.from_numpy(images[1, 0]).float(), cropped, atol=0.02, rtol=0)
    assert set(owners) == {0}


def test_silence_is_never_a_view(corpus: Corpus) -> None:
    images, _ = windows(corpus, np.array([0]), 98, 50)
    assert len(images) == 4, "windows at 0, 0.5, 1 and 1.5 s hear the tone, which ends at 2 s"
    loud = corpus.loud[: corpus.lengths[0]]
    assert loud[:190].all()
    assert not loud[201:].any()


def test_views_are_seeded_and_differ(corpus: Corpus) -> None:
    recordings = np.arange(len(corpus.labels))
    first, again, other = (augmented(corpus, recordings, 98, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    np.testing.assert_allclose(first.classes.sum(1), 1, rtol=1e-5)
    assert crops(corpus, recordings, 98, np.random.default_rng(0))[0].shape == (len(recordings), 98, 128)


def test_what_a_run_stops_by_shares_no_source_with_what_it_learns_from_nor_with_the_judged_fold(corpus: Corpus) -> None:
    both = split(corpus, 0)
    assert len(both.validation) > 0
    assert set(corpus.groups[both.train]) & set(corpus.groups[both.validation]) == set()
    assert HELD_OUT_FOLD not in corpus.folds[np.concatenate([both.train, both.validation])]
    assert set(corpus.sets[both.validation]) == {0, 1}


def test_a_run_that_was_stopped_ends_in_the_same_bytes(corpus: Corpus, tmp_path: Path) -> None:
    paths = [tmp_path / "whole.npz", tmp_path / "stopped.npz"]
    finished(corpus, tmp_path / "stopped", until=1)
    for path in paths:
        course = finished(corpus, path.with_suffix(""))
        trained_weights(course, "mobilenet_v3_small", "speech-and-sounds", False).write(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_run_of_another_recipe_is_not_continued(corpus: Corpus, tmp_path: Path) -> None:
    finished(corpus, tmp_path, until=1)
    with pytest.raises(UsageError, match=r"run\.pt: begun with .*; remove it"):
        finished(corpus, tmp_path, Recipe(epochs=3, batch=8))


def test_the_command_writes_weights_and_says_how_good_they_are(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["mobilenet_v3_small", "--audio", str(recordings), "--cache", str(tmp_path), "--epochs", "1"]
    main([*command, "--weights-of", "sounds", "--batch", "8"])
    said = capsys.readouterr().out
    assert "epoch 1: loss" in said
    assert "reference.mobilenet_v3_small_sounds.esc10" in said
    file = tmp_path / "mobilenet_v3_small.sounds.npz"
    trained = find_trained("mobilenet_v3_small", str(file))
    assert trained.head is not None
    assert trained.head.labels == ("rain", "rooster")
    assert trained.head.validation is not None
    assert (trained.head.validation.groups, trained.head.validation.windows) == (4, 16)
    assert "ESC-10" in trained.attribution
    assert "Speech Commands" not in trained.attribution


@pytest.mark.slow
def test_the_shipped_weights_know_recordings_that_they_have_not_seen() -> None:
    audio = os.environ.get("SSC_TEST_AUDIO")
    if not audio:
        pytest.skip("SSC_TEST_AUDIO names no folder with ESC-10 and Speech Commands")
    trained = find_trained("mobilenet_v3_small", "speech-and-sounds")
    for name in ("esc10", "speech_commands"):
        judged = judge(trained, Path(audio) / name / "labels.csv", most=FEW)
        assert judged.groups == 10 * FEW
        assert judged.group_accuracy >= 0.75, judged.split
