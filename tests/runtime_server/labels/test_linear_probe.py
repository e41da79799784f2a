"""Labelled recordings as a judge: the same numbers as scikit-learn's, and what cannot judge is refused."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from runtime_edge.errors import UsageError
from runtime_server.labels import linear_probe as probe_module
from runtime_server.labels.linear_probe import LinearProbe
from runtime_server.releases.release_gate import first_model

pytestmark = pytest.mark.integration


@pytest.fixture
def front_end(small_bundle):
    return small_bundle.manifest.info.front_end


@pytest.fixture
def model(generations):
    return first_model(generations.graph, generations.newest)


def test_an_encoder_that_hears_the_difference_beats_one_that_does_not(recordings, front_end, model):
    probe = LinearProbe(recordings, front_end)
    score = probe.score(model)
    assert score == probe.score(model)
    assert score.accuracy > 0.9
    with torch.no_grad():
        model.module.get_parameter("head.weight").zero_()
    deaf = probe.score(model)
    assert deaf.accuracy < 0.7
    with torch.no_grad():
        model.module.get_parameter("head.weight").fill_(float("nan"))
    assert probe.score(model).accuracy == 0.0


def test_neighbours_are_those_of_other_folds(recordings, front_end, model):
    probe = LinearProbe(recordings, front_end)
    heard = probe.examples
    with torch.no_grad():
        embeddings = model.module(torch.from_numpy(heard.embeddings)).numpy()
    labels, right = heard.truth.argmax(axis=1), 0
    for fold in np.unique(heard.folds):
        out = heard.folds == fold
        assert set(heard.groups[out]).isdisjoint(heard.groups[~out])
        fitted = KNeighborsClassifier(5, metric="cosine").fit(embeddings[~out], labels[~out])
        right += (fitted.predict(embeddings[out]) == labels[out]).sum()
    assert probe.score(model).knn_accuracy == pytest.approx(right / len(labels))


def test_it_asks_a_bounded_number_of_windows_of_every_recording(recordings, front_end, model, monkeypatch):
    monkeypatch.setattr(probe_module, "MAX_WINDOWS", 30)
    heard = LinearProbe(recordings, front_end).examples
    assert np.bincount(heard.groups).tolist() == [2] * 12
    assert heard.embeddings.shape == (24, front_end.window_samples)


def test_what_cannot_judge_is_refused(recordings, front_end, tmp_path):
    events = tmp_path / "heard.csv"
    events.write_text("device,time,label\npi-1,1,dog\n")
    with pytest.raises(UsageError, match="needs recordings"):
        LinearProbe(events, front_end)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "low").symlink_to(recordings / "low")
    with pytest.raises(UsageError, match="at least two labels"):
        LinearProbe(tmp_path / "one", front_end)
    with pytest.raises(UsageError, match="no such folder"):
        LinearProbe(tmp_path / "nowhere", front_end)
