"""Heads are scikit-learn's logistic regressions, and their held-out scores are honest."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.metrics import log_loss as reference_log_loss

from runtime_edge.errors import UsageError
from runtime_server.labels.head_training import (
    FOLDS,
    Examples,
    average_precision,
    fit_head,
    fit_path,
    log_loss,
    truth_of,
)

pytestmark = pytest.mark.integration

WIDTH, LABELS = 12, ("alarm", "dog", "rain")


def blobs(groups=30, windows=4, spread=0.35, seed=0):
    """Unit embeddings around one direction for each label, with an offset of its own for each group."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, WIDTH))
    kind = np.arange(groups) % 3
    middle = centres[kind] + 0.5 * rng.normal(size=(groups, WIDTH))
    x = np.repeat(middle, windows, axis=0) + spread * rng.normal(size=(groups * windows, WIDTH))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x, np.repeat(kind, windows), np.repeat(np.arange(groups), windows)


def examples(x, kind, group, **changes):
    truth = np.eye(3, dtype=bool)[kind]
    return Examples(
        **{"embeddings": x, "labels": LABELS, "truth": truth, "groups": group, "generations": (1, 1)} | changes
    )


def standardised(x):
    centred = x.astype(np.float64) - x.mean(0)
    return centred / np.sqrt((centred**2).mean())


def test_the_fit_is_the_multinomial_logistic_regression_of_scikit_learn():
    x, kind, _ = blobs()
    strengths = (0.01, 1.0)
    for strength, found in zip(strengths, fit_path(x, np.eye(3, dtype=bool)[kind], True, strengths), strict=True):
        reference = LogisticRegression(C=strength, tol=1e-8, max_iter=2000).fit(standardised(x), kind)
        expected = reference.predict_proba(standardised(x))
        np.testing.assert_allclose(softmax(x @ found.weights.T + found.bias, axis=1), expected, atol=1e-3)
        np.testing.assert_allclose(found.scores(x, True), expected, atol=1e-3)


def test_with_several_labels_it_is_one_logistic_regression_for_each():
    x, kind, _ = blobs(seed=1)
    truth = np.eye(3, dtype=bool)[kind]
    truth[::5, 2] = True  # rain comes with other sounds, too
    (found,) = fit_path(x, truth, False, [0.1])
    for column in range(3):
        reference = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000).fit(standardised(x), truth[:, column])
        expected = reference.predict_proba(standardised(x))[:, 1]
        np.testing.assert_allclose(found.scores(x, False)[:, column], expected, atol=1e-3)
        np.testing.assert_allclose(expit(x @ found.weights[column] + found.bias[column]), expected, atol=1e-3)


def test_measures_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    scores = np.round(rng.dirichlet(np.ones(4), 200), 2)  # rounded: with ties
    scores /= scores.sum(axis=1, keepdims=True)
    kind = rng.integers(0, 4, 200)
    truth = np.eye(4, dtype=bool)[kind]
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores, average="macro"))
    clipped = np.clip(scores, 1e-12, 1)
    assert log_loss(scores, truth, True) == pytest.approx(reference_log_loss(kind, clipped), rel=1e-6)


def test_a_head_scores_as_it_was_fitted_and_tells_what_it_was_fitted_on():
    x, kind, group = blobs()
    head = fit_head(examples(x, kind, group, generations=(2, 5)), "toy", "test")
    assert (head.encoder, head.embedding_dim, head.labels, head.scores_by) == ("toy", WIDTH, LABELS, "softmax")
    assert head.generations == (2, 5)
    assert (head.scores(x).argmax(1) == kind).mean() > 0.95
    assert head.validation.split == f"{FOLDS} folds by clip"
    assert (head.validation.windows, head.validation.groups) == (len(x), 30)


def test_windows_of_one_clip_are_never_on_both_sides():
    # Every group has a direction of its own, and labels are drawn at random: whoever knows the group knows the label.
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(24), 6)
    x = rng.normal(size=(24, 64))[group] + 0.05 * rng.normal(size=(len(group), 64))
    kind = rng.integers(0, 2, 24)[group]
    truth = np.eye(2, dtype=bool)[kind]
    data = Examples(x.astype(np.float32), ("a", "b"), truth, group, (1, 1))
    assert fit_head(data, "toy", "test").validation.accuracy < 0.75
    leaking = Examples(x.astype(np.float32), ("a", "b"), truth, np.arange(len(group)), (1, 1))
    assert fit_head(leaking, "toy", "test").validation.accuracy > 0.95


def test_a_given_split_is_used():
    x, kind, group = blobs()
    head = fit_head(examples(x, kind, group, folds=group // 3 % 2), "toy", "test")
    assert head.validation.split == "the 2 folds given"


def test_scores_can_be_read_as_probabilities():
    x, kind, group = blobs(groups=400, spread=2.0, seed=4)
    seen = group < 200
    head = fit_head(examples(x[seen], kind[seen], group[seen]), "toy", "test")
    scores, truth = head.scores(x[~seen]), kind[~seen]
    best, right = scores.max(1), scores.argmax(1) == truth
    for low, high in ((0.4, 0.6), (0.6, 0.8), (0.8, 1.0)):
        inside = (best >= low) & (best < high)
        assert inside.sum() > 100
        assert right[inside].mean() == pytest.approx(best[inside].mean(), abs=0.1)


def test_a_threshold_separates_a_label_from_the_rest():
    x, kind, group = blobs(spread=0.1)
    head = fit_head(examples(x, kind, group), "toy", "test")
    detected = head.scores(x) >= np.array(head.thresholds)
    assert (detected == np.eye(3, dtype=bool)[kind]).mean() > 0.97
    assert min(head.thresholds) >= 0.5


def test_several_labels_to_a_window_give_sigmoid_scores():
    names, truth = truth_of([("dog",), ("dog", "rain"), ("rain",)] * 10)
    assert names == ("dog", "rain")
    assert truth.tolist()[:3] == [[True, False], [True, True], [False, True]]
    rng = np.random.default_rng(6)
    x = (truth @ rng.normal(size=(2, WIDTH)) + 0.1 * rng.normal(size=(30, WIDTH))).astype(np.float32)
    head = fit_head(Examples(x, names, truth, np.arange(30), (1, 1)), "toy", "test")
    assert head.scores_by == "sigmoid"
    assert head.validation.accuracy > 0.9
    assert ((head.scores(x) >= np.array(head.thresholds)) == truth).all()


def test_the_same_seed_gives_the_same_bytes():
    x, kind, group = blobs()
    first, second = (fit_head(examples(x, kind, group), "toy", "test", seed=7) for _ in range(2))
    assert first.to_json() == second.to_json()


def test_too_little_to_hold_out_is_said_and_still_gives_a_head():
    x, kind, group = blobs(groups=3)
    head = fit_head(examples(x, kind, group), "toy", "test")
    assert head.validation is None
    assert (head.scores(x).argmax(1) == kind).mean() > 0.9


def test_what_cannot_be_told_apart_is_refused():
    x, kind, group = blobs()
    with pytest.raises(UsageError, match="only one label, dog"):
        fit_head(Examples(x, ("dog",), np.ones((len(x), 1), bool), group, (1, 1)), "toy", "test")
    with pytest.raises(UsageError, match="label 'rain': no window has it"):
        fit_head(examples(x[kind < 2], kind[kind < 2], group[kind < 2]), "toy", "test")


def test_scores_of_exits_are_as_honest_as_a_temperature_makes_them():
    x, kind, group = blobs(groups=90, spread=0.4)
    rng = np.random.default_rng(1)
    noisy = x + 0.35 * rng.normal(size=x.shape).astype(np.float32)
    found = fit_head(examples(x, kind, group, by_exit={"same": x, "noisy": noisy}), "toy", "test")

    assert found.exit_temperatures["noisy"] > found.exit_temperatures["same"]
    truth = np.eye(3, dtype=bool)[kind]
    honest, plain = (log_loss(np.asarray(found.scores(noisy, cut), np.float64), truth, True) for cut in ("noisy", None))
    assert honest < plain
    assert fit_head(examples(x, kind, group), "toy", "test").exit_temperatures == {}


def test_a_head_knows_the_energy_that_known_sounds_have_and_the_label_for_everything_else():
    x, kind, group = blobs()
    head = fit_head(examples(x, kind, group), "toy", "test")
    energies = logsumexp(head.logits(x).astype(np.float64), axis=1)
    assert head.background is None
    assert (energies < head.min_energy).mean() == pytest.approx(0.05, abs=0.05)
    far = np.random.default_rng(9).normal(scale=0.05, size=(50, WIDTH))
    assert np.mean([head.is_unknown(one) for one in far]) > 0.9

    named = replace(examples(x, kind, group), labels=("background", *LABELS[1:]))
    head = fit_head(named, "toy", "test")
    assert head.background == "background"
    assert head.min_energy != fit_head(examples(x, kind, group), "toy", "test").min_energy, "of known sounds alone"


def test_an_exit_has_a_temperature_by_the_windows_that_are_known_of_it_if_those_are_enough():
    x, kind, group = blobs(groups=90, spread=0.4)
    noisy = x + 0.35 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    half, few = noisy.copy(), noisy.copy()
    half[::2] = np.nan
    few[31:] = np.nan
    every = fit_head(examples(x, kind, group, by_exit={"noisy": noisy}), "toy", "test").exit_temperatures["noisy"]
    found = fit_head(examples(x, kind, group, by_exit={"half": half, "few": few}), "toy", "test").exit_temperatures

    assert found.keys() == {"half"}
    assert found["half"] == pytest.approx(every, rel=0.4)
