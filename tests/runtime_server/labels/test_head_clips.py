"""What is kept of the clips of a pushed head: bounded, private, checked, and the head's score on it."""

import stat

import numpy as np
import pytest
import soundfile
import torch
from msgspec.structs import replace

from runtime_edge.base.checked_files import checksum_path
from runtime_edge.errors import FormatError, UsageError
from runtime_edge.formats.records.head import Head
from runtime_server.labels import head_clips
from runtime_server.labels.head_clips import HeadClips, HeadClipsFolder
from runtime_server.labels.head_training import fit_head
from runtime_server.labels.labelled import LabelledClip, of_clips, read_clips
from runtime_server.labels.linear_probe import embedded
from runtime_server.releases.release_gate import first_model

pytestmark = pytest.mark.integration
GATE_DB = -60.0


@pytest.fixture
def front_end(small_bundle):
    return small_bundle.manifest.info.front_end


@pytest.fixture
def clips(recordings):
    return read_clips(recordings)


@pytest.fixture
def head(clips, small_bundle):
    return fit_head(of_clips(clips, small_bundle), small_bundle.manifest.info.encoder.id, "test")


@pytest.fixture
def kept(head, clips, front_end):
    return HeadClips.of(head, clips, front_end, GATE_DB)


@pytest.fixture
def folder(tmp_path):
    return HeadClipsFolder(tmp_path / "heads")


def test_every_clip_is_asked_of_a_head_that_was_fitted_to_others(kept, head, clips, generations):
    model = first_model(generations.graph, generations.newest)
    assert len(kept.clips) == len(clips) == 12
    right = kept.right(model)
    assert right.shape == (12,)
    assert right.mean() == head.validation.group_accuracy > 0.5, "it has learnt something"
    with torch.no_grad():
        model.module.get_parameter("head.weight").zero_()
    assert kept.right(model).sum() <= 6, "one label for all"
    with torch.no_grad():
        model.module.get_parameter("head.weight").fill_(float("nan"))
    assert kept.right(model).sum() == 0


def test_a_head_fitted_anew_follows_the_embeddings(kept, head, generations):
    model = first_model(generations.graph, generations.newest)
    same = kept.refitted(model)
    assert (same.labels, same.generations) == (head.labels, head.generations)
    assert Head.from_json(same.to_json(), "head") == same
    with torch.no_grad():
        model.module.get_parameter("head.weight").neg_()
    turned = kept.refitted(model)
    for fitted, moved in ((same, generations.newest.model), (turned, model)):
        scores = fitted.scores(embedded(moved, kept.samples))
        truth = [kept.clips[place][0] for place in kept.places]
        assert np.mean([fitted.labels[row.argmax()] == label for row, label in zip(scores, truth, strict=True)]) > 0.7
    assert np.dot(*(np.frombuffer(one.weights, "<f4") for one in (same, turned))) < 0, "the embeddings were turned"


def test_a_head_of_too_few_clips_stays_and_is_asked_as_it_is(head, clips, front_end, generations):
    few = HeadClips.of(head, [clips[0], clips[-1]], front_end, GATE_DB)
    model = generations.newest.model
    assert few.refitted(model) == head
    scores = head.scores(embedded(model, few.samples))
    means = [scores[np.array(few.places) == place].mean(axis=0) for place in range(2)]
    expected = [head.labels[mean.argmax()] in own for mean, own in zip(means, few.clips, strict=True)]
    assert few.right(model).tolist() == expected


def test_a_fixed_head_stays_and_is_asked_as_it_is(kept, head, clips, front_end, generations):
    fixed = HeadClips.of(head, clips, front_end, GATE_DB, fixed=True)
    model = first_model(generations.graph, generations.newest)
    assert fixed.right(model).sum() > 6
    with torch.no_grad():
        model.module.get_parameter("head.weight").neg_()
    assert fixed.right(model).sum() <= 6 < kept.right(model).sum(), "the embeddings are turned around"
    assert fixed.refitted(model) == head


def test_what_the_best_generation_made_of_them_is_checked(kept):
    with pytest.raises(FormatError, match="best: not a 0 or 1 for each of the 12 clips"):
        replace(kept, best=b"\1" * 11)
    with pytest.raises(FormatError, match="best: not a 0 or 1 for each of the 12 clips"):
        replace(kept, best=b"\2" * 12)


def test_what_is_kept_is_bounded_and_spread_over_all_clips(head, clips, front_end, monkeypatch):
    many = [clip for clip in clips for _ in range(100)]
    kept = HeadClips.of(head, many, front_end, GATE_DB)
    assert len(kept.places) <= 1024
    assert len(kept.windows) == 2 * len(kept.places) * front_end.window_samples
    assert {label for labels in kept.clips for label in labels} == {"high", "low"}
    with pytest.raises(FormatError, match="places: not a window of each of the 13 clips"):
        replace(kept, clips=[("high",)] * 13, places=[0] * len(kept.places))
    with pytest.raises(FormatError, match="windows: 3 bytes"):
        replace(kept, windows=b"123")


def test_a_clip_that_cannot_be_read_is_left_out(head, clips, front_end, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    kept = HeadClips.of(head, [LabelledClip(tmp_path / "broken.wav", ("low",)), *clips], front_end, GATE_DB)
    assert len(kept.clips) == 12
    assert set(kept.places) == set(range(12))


def test_several_labels_of_a_clip_are_asked_together(clips, small_bundle, generations, tmp_path):
    both = tmp_path / "both.wav"
    low, rate = soundfile.read(clips[-1].path)
    soundfile.write(both, 0.5 * (low + soundfile.read(clips[0].path)[0]), rate)
    mixed = [*clips, LabelledClip(both, ("low", "high"))]
    head = fit_head(of_clips(mixed, small_bundle), small_bundle.manifest.info.encoder.id, "test")
    assert head.scores_by == "sigmoid"
    kept = HeadClips.of(head, mixed, small_bundle.manifest.info.front_end, GATE_DB)
    assert kept.clips[-1] == ("high", "low")
    model = first_model(generations.graph, generations.newest)
    embeddings = embedded(model, kept.samples)
    means = np.array([head.scores(embeddings[np.array(kept.places) == place]).mean(axis=0) for place in range(13)])
    truth = np.array([[label in clip.labels for label in head.labels] for clip in mixed])
    expected = ((means >= 0.5) == truth).all(axis=1)
    agree = kept.right(model) == expected
    assert agree.sum() >= 10, "heads fitted to 80 % of them say nearly the same"


def test_they_are_for_the_owner_alone_and_damage_is_noticed(folder, kept, head):
    folder.keep(kept)
    assert folder.read(head) == kept
    (path,) = folder.path.glob("*.clips")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert checksum_path(path).exists()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=f"{path}: is damaged.*not judged by that head until it is pushed again"):
        folder.read(head)
    path.unlink()
    with pytest.raises(FormatError, match="is missing"):
        folder.read(head)
    checksum_path(path).unlink()
    assert folder.read(head) is None


def test_labels_that_the_head_does_not_have_are_refused(kept, generations):
    odd = replace(kept, clips=[("dog",), *kept.clips[1:]])
    with pytest.raises(FormatError, match="dog: the head's labels are high, low"):
        odd.right(first_model(generations.graph, generations.newest))


def test_clips_go_with_their_head_and_not_of_more_heads_than_a_bound(folder, kept, head, monkeypatch):
    other = replace(head, created_by="another")
    folder.keep(kept)
    folder.keep(replace(kept, head=other.to_json()))
    folder.remove_others([other])
    assert folder.read(head) is None
    assert folder.read(other).head == other.to_json()
    assert len(list(folder.path.iterdir())) == 2, "the file and its checksum"
    monkeypatch.setattr(head_clips, "MAX_HEADS", 1)
    folder.keep(replace(kept, head=other.to_json()))
    with pytest.raises(UsageError, match="has the clips of 1 heads, no more are kept"):
        folder.keep(kept)
