import numpy as np
import pytest
import soundfile
import torch

from runtime_edge.errors import UsageError
from runtime_edge.formats.wire import encode_frame
from runtime_edge.inference.prefix import Prefix
from runtime_server.labels import corrections as module
from runtime_server.labels.corrections import Correction, Corrections, with_corrections
from runtime_server.labels.head_clips import HeadClips
from runtime_server.labels.head_training import Examples, fit_head
from runtime_server.labels.labelled import LabelledClip
from runtime_server.labels.linear_probe import embedded as embedded_by
from runtime_server.releases.release_gate import first_model


def correction(label="dog", frames=(b"frame",), device="pi-1", since=5.0, heard="rain", made_at=1.0):
    return Correction(
        device=device, since=since, until=since + 1, heard=heard, label=label, made_at=made_at, frames=list(frames)
    )


def as_audio(samples, window=0):
    return encode_frame(window, 0, 7, 0, "pcm16", False, 0.5, np.rint(samples * 32767).astype("<i2").tobytes())


@pytest.fixture
def store(tmp_path):
    return Corrections(tmp_path / "corrections")


@pytest.fixture
def sounds(small_bundle):
    """(8, samples) of noise, and what the encoder makes of it."""
    length = small_bundle.manifest.info.front_end.window_samples
    heard = np.rint(np.random.default_rng(0).uniform(-0.4, 0.4, (8, length)) * 32767).astype(np.float32) / 32767
    prefix = Prefix(small_bundle)
    return heard, np.stack([prefix.embed(window) for window in heard])


def examples_of(embeddings, labels=("cat", "rain"), **more):
    truth = np.arange(len(embeddings))[:, None] % len(labels) == np.arange(len(labels))
    return Examples(embeddings, labels, truth, np.arange(len(embeddings)), (1, 1), **more)


def test_what_is_said_about_a_sound_last_counts(store):
    store.keep(correction("dog"))
    store.keep(correction("cat", made_at=2.0))
    store.keep(correction("dog", since=9.0))
    assert [(one.since, one.label) for one in store.read()] == [(9.0, "dog"), (5.0, "cat")]
    before = store.fingerprint
    store.forget("pi-1", "rain", 5.0)
    assert [one.since for one in store.read()] == [9.0]
    assert store.fingerprint != before
    assert all(path.stat().st_mode & 0o077 == 0 for path in store.path.glob("*.correction"))


def test_there_is_a_bound(store, monkeypatch):
    for since in range(3):
        store.keep(correction(since=float(since)))
    monkeypatch.setattr(module, "MAX_CORRECTIONS", 3)
    store.keep(correction("cat", since=2.0))
    with pytest.raises(UsageError, match="has 3 corrections, no more are kept"):
        store.keep(correction(since=3.0))


def test_a_damaged_one_is_named_and_the_others_are_read(store, caplog):
    store.keep(correction())
    (file,) = store.path.glob("*.correction")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    store.keep(correction(since=9.0))
    assert [one.since for one in store.read()] == [9.0]
    assert "is damaged" in caplog.text


def test_corrected_windows_join_the_recordings(small_bundle, sounds):
    heard, embedded = sounds
    said = [
        correction("rain", [as_audio(heard[4]), as_audio(heard[5], 1)]),
        correction("dog", [as_audio(heard[6])], since=8.0),
        correction("dog", [as_audio(heard[7])], since=9.0),
    ]
    by_exit = {"stem": np.ones((4, embedded.shape[1]), np.float32)}
    folds = np.array([0, 1, 0, 1])
    found = with_corrections(examples_of(embedded[:4], by_exit=by_exit, folds=folds), said, {1: small_bundle})
    examples = found.examples
    assert found.used == 3
    assert examples.labels == ("cat", "dog", "rain")
    np.testing.assert_allclose(examples.embeddings, embedded, atol=1e-5)
    assert [examples.labels[row.argmax()] for row in examples.truth] == [
        "cat", "rain", "cat", "rain", "rain", "rain", "dog", "dog"
    ]  # fmt: skip
    assert examples.groups.tolist() == [0, 1, 2, 3, 4, 4, 5, 6]
    assert examples.folds.tolist() == [0, 1, 0, 1, 0, 0, 1, 0]
    assert np.isnan(examples.by_exit["stem"][4:]).all()
    assert [(labels, len(windows)) for labels, windows in found.audio] == [(("rain",), 2), (("dog",), 1), (("dog",), 1)]
    np.testing.assert_allclose(found.audio[0][1], heard[4:6], atol=1e-6)


def test_a_new_label_needs_two_corrections(small_bundle, sounds, caplog):
    heard, embedded = sounds
    found = with_corrections(examples_of(embedded[:4]), [correction("dog", [as_audio(heard[4])])], {1: small_bundle})
    assert (found.used, found.examples.labels) == (0, ("cat", "rain"))
    assert "label dog: one correction alone" in caplog.text


def test_what_no_bundle_can_complete_is_named(small_bundle, sounds, caplog):
    lost = encode_frame(0, 0, 7, 1, "float32", False, 0.5, b"of a generation that is not here")
    found = with_corrections(examples_of(sounds[1]), [correction("rain", [lost])], {1: small_bundle})
    assert found.used == 0
    assert "rain on pi-1: corrected to rain, but blocks before its cut have changed since" in caplog.text


@pytest.fixture
def with_two_dogs(small_bundle, sounds, tmp_path):
    """A head that knows two corrected sounds, and the clips that are kept with it."""
    heard, embedded = sounds
    front_end = small_bundle.manifest.info.front_end
    clips = []
    for number, window in enumerate(heard[:4]):
        soundfile.write(tmp_path / f"{number}.wav", window, front_end.sample_rate)
        clips.append(LabelledClip(tmp_path / f"{number}.wav", (("cat", "rain")[number % 2],)))
    said = [correction("dog", [as_audio(heard[6])], since=8.0), correction("dog", [as_audio(heard[7])], since=9.0)]
    found = with_corrections(examples_of(embedded[:4]), said, {1: small_bundle})
    head = fit_head(found.examples, "small", "test")
    return head, HeadClips.of(head, clips, front_end, None, corrected=found.audio)


def test_corrected_audio_is_kept_with_a_head_for_the_next_release(sounds, with_two_dogs):
    (heard, _), (_, kept) = sounds, with_two_dogs
    assert [label for labels in kept.clips for label in labels] == ["cat", "rain", "cat", "rain", "dog", "dog"]
    np.testing.assert_allclose(kept.samples[-2:], heard[6:], atol=1e-3)


def test_a_head_that_comes_with_a_release_knows_what_was_corrected(generations, sounds, with_two_dogs):
    (heard, _), (head, kept) = sounds, with_two_dogs
    model = first_model(generations.graph, generations.newest)
    with torch.no_grad():
        model.module.get_parameter("head.weight").mul_(-1)
    again = kept.refitted(model)
    assert again != head
    assert again.labels == ("cat", "dog", "rain")
    scores = again.scores(embedded_by(model, heard[6:8]))
    assert [again.labels[best] for best in scores.argmax(axis=1)] == ["dog", "dog"]
