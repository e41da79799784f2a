"""Fits a head: regularised logistic regression on embeddings, with its scores on held-out windows.

    head = fit_head(examples, encoder="mn", created_by="ssc server label", seed=0)
    head.validation.accuracy

The regularisation strength is the one with the most honest scores on held-out windows (the least log loss), so the
scores that a device gives can be read as probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime_edge.errors import UsageError
from runtime_edge.formats.records.head import Head, Validation

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation strengths tried, `C` in scikit-learn's terms; features are scaled to unit variance."""
TEMPERATURES = tuple(round(1.1**power, 3) for power in range(-10, 26))
"""Tried for exits: from 0.39 to 10.8."""
_FEW_WINDOWS = 32
"""Minimum number of windows with an exit's embedding to give the exit its own temperature."""
FOLDS = 5
BACKGROUND = "background"
"""The label that stands for everything else."""
KNOWN_KEPT = 0.95
"""Share of held-out windows of known sounds that are not mistaken for unknown ones."""
_ITERATIONS = 500
_ROUGHLY = 1e-4
"""Gradient at which fits on held-out folds stop; their scores are then accurate to a hundredth."""


@dataclass(frozen=True)
class Examples:
    """Labelled windows."""

    embeddings: npt.NDArray[np.float32]
    """(windows, d)."""
    labels: tuple[str, ...]
    truth: Bools
    """(windows, labels)."""
    groups: Integers
    """(windows,): the clip or event of each; the windows of one are held out together."""
    generations: tuple[int, int]
    """First and last generation of the embeddings."""
    folds: Integers | None = None
    """(windows,): a given split, the same for all windows of a group."""
    unit: str = "clip"
    """What a group is."""
    by_exit: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """The exits' embeddings (windows, d) of the same windows, by the name of the cut; NaN where unknown."""
    several: bool = False
    """A window may have several labels, even if none here has."""

    @property
    def exclusive(self) -> bool:
        """Whether each window has exactly one label."""
        return not self.several and bool((self.truth.sum(axis=1) == 1).all())


@dataclass(frozen=True)
class Linear:
    """Logits `x @ weights.T + bias`."""

    weights: Floats
    """(labels, d)."""
    bias: Floats
    """(labels,)."""

    def logits(self, embeddings: npt.ArrayLike) -> Floats:
        """(windows, labels)."""
        return np.asarray(np.asarray(embeddings, np.float64) @ self.weights.T + self.bias)

    def scores(self, embeddings: npt.ArrayLike, exclusive: bool, temperature: float = 1.0) -> Floats:
        """(windows, labels) in [0, 1]."""
        logits = torch.from_numpy(self.logits(embeddings)) / temperature
        return np.asarray((torch.softmax(logits, 1) if exclusive else torch.sigmoid(logits)).numpy())


def fit_head(examples: Examples, encoder: str, created_by: str, seed: int = 0, model: str | None = None) -> Head:
    """A head for devices that run `encoder`, with its scores on held-out windows.

    `model` is the `manifest.model_digest` of the last generation whose embeddings are among the examples. Raises
    UsageError if there are fewer than two labels to tell apart, or a label has no window.
    """
    counts = examples.truth.sum(axis=0)
    if len(examples.labels) < 2 and counts.sum() == len(examples.truth):
        raise UsageError(f"only one label, {', '.join(examples.labels)}: give windows of at least one other")
    if not counts.all():
        raise UsageError(f"label {examples.labels[int(np.argmin(counts))]!r}: no window has it")
    folds = folds_of(examples, seed)
    strength, thresholds, validation = 1.0, np.full(len(counts), 0.5), None
    temperatures: dict[str, float] = {}
    min_energy = None
    if folds is not None:
        strength, held_out, energies = _strongest(examples, folds)
        thresholds = _thresholds(held_out, examples.truth)
        validation = _validate(examples, held_out, folds)
        temperatures = _exit_temperatures(examples, folds, strength)
        min_energy = _min_energy(examples, energies)
    fitted = fit_path(examples.embeddings, examples.truth, examples.exclusive, [strength])[0]
    return Head(
        encoder=encoder,
        embedding_dim=examples.embeddings.shape[1],
        generations=examples.generations,
        model=model,
        exit_temperatures=temperatures,
        background=BACKGROUND if BACKGROUND in examples.labels else None,
        min_energy=min_energy,
        temperature=1.0,  # the strength of the regularisation is chosen by the log loss on held-out windows
        labels=examples.labels,
        scores_by="softmax" if examples.exclusive else "sigmoid",
        thresholds=tuple(float(value) for value in thresholds),
        validation=validation,
        created_by=created_by,
        bias=fitted.bias.astype("<f4").tobytes(),
        weights=fitted.weights.astype("<f4").tobytes(),
    )


def validate(examples: Examples, seed: int = 0) -> Validation | None:
    """How good a head is on windows it has not seen; None if no split leaves every label on both sides."""
    folds = folds_of(examples, seed)
    return None if folds is None else _validate(examples, _strongest(examples, folds)[1], folds)


def held_out_right(examples: Examples, seed: int = 0) -> Bools | None:
    """(groups,) which groups, in ascending order, are labelled correctly by fits that did not see their fold.

    None if no split leaves every label on both sides.
    """
    folds = folds_of(examples, seed)
    if folds is None or len(examples.labels) < 2:
        return None
    _, first = np.unique(examples.groups, return_index=True)
    scores = mean_by_group(_strongest(examples, folds)[1], examples.groups)
    return right_rows(scores, examples.truth[first], examples.exclusive)


def fit_path(
    embeddings: npt.ArrayLike, truth: Bools, exclusive: bool, strengths: Sequence[float], gradient: float = 1e-5
) -> list[Linear]:
    """For each strength, the weights that minimise `sum of log losses + |W|^2 / (2 strength)`, by L-BFGS.

    `exclusive`: softmax over the labels; otherwise a sigmoid for each. Embeddings (windows, d) are standardised (the
    mean of each value, one scale for all); the returned weights include this. Each fit starts from the previous one, so
    rising strengths are quickest; it stops at that gradient of the mean objective.
    """
    x = torch.as_tensor(np.asarray(embeddings, np.float64))
    y = torch.as_tensor(truth.astype(np.float64))
    mean = x.mean(0)
    scale = float((x - mean).square().mean().sqrt().clamp(min=1e-9))
    x = (x - mean) / scale
    weights = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    fitted = []
    for strength in strengths:
        _minimise(x, y, weights, bias, exclusive, strength, gradient)
        folded = weights.detach() / scale
        fitted.append(Linear(folded.numpy(), (bias.detach() - folded @ mean).numpy()))
    return fitted


def _minimise(
    x: Tensor, y: Tensor, weights: Tensor, bias: Tensor, exclusive: bool, strength: float, gradient: float
) -> None:
    optimizer = torch.optim.LBFGS(
        [weights, bias],
        max_iter=_ITERATIONS,
        history_size=10,
        tolerance_grad=gradient,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )
    loss_of = nn.functional.cross_entropy if exclusive else nn.functional.binary_cross_entropy_with_logits

    def step() -> Tensor:
        optimizer.zero_grad()
        losses = loss_of(x @ weights.T + bias, y, reduction="sum")
        loss = (losses + weights.square().sum() / (2 * strength)) / len(x)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(step)  # type: ignore[no-untyped-call]


def log_loss(scores: Floats, truth: Bools, exclusive: bool) -> float:
    """Mean negative log likelihood of the truth (windows, labels)."""
    clipped = np.clip(scores, 1e-12, 1.0 - 1e-12)
    likelihood = truth * np.log(clipped)
    if not exclusive:
        likelihood = likelihood + ~truth * np.log(1.0 - clipped)
    return float(-likelihood.sum(axis=1).mean())


def average_precision(scores: Floats, truth: Bools) -> float:
    """Mean over the labels of the area under the precision-recall curve, `sum of (R_i - R_(i-1)) P_i`."""
    values = []
    for column, right in zip(scores.T, truth.T, strict=True):
        order = np.argsort(-column, kind="stable")
        hits = np.cumsum(right[order])
        last = np.append(np.diff(column[order]) != 0, True)  # equal scores are one point of the curve
        precision = hits[last] / (np.flatnonzero(last) + 1)
        recall = hits[last] / max(int(right.sum()), 1)
        values.append(float(np.sum(np.diff(recall, prepend=0.0) * precision)))
    return float(np.mean(values))


def folds_of(examples: Examples, seed: int) -> Integers | None:
    """(windows,) fold of each, given or dealt by the seed; None if some label would be missing from a fit."""
    folds = examples.folds
    if folds is None:
        folds = _dealt(examples, seed)
    outside = [examples.truth[folds != fold].any(axis=0).all() for fold in np.unique(folds)]
    return folds if len(outside) > 1 and all(outside) else None


def _dealt(examples: Examples, seed: int) -> Integers:
    """Groups dealt to folds like cards, label by label, so that each fold gets some of every label."""
    groups, first = np.unique(examples.groups, return_index=True)
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    kinds = examples.truth[first[shuffled]].argmax(axis=1)
    order = shuffled[np.argsort(kinds, kind="stable")]
    fold_of = np.empty(len(groups), np.int64)
    fold_of[order] = np.arange(len(groups)) % min(FOLDS, len(groups))
    return np.asarray(fold_of[np.searchsorted(groups, examples.groups)])


def _strongest(examples: Examples, folds: Integers) -> tuple[float, Floats, Floats]:
    """The strength with the least log loss on held-out windows, their scores (windows, labels), energies (windows,).

    Each window's scores and energy come from fits that did not see its fold.
    """
    scores, energies = np.empty((len(STRENGTHS), *examples.truth.shape)), np.empty((len(STRENGTHS), len(folds)))
    for fold in np.unique(folds):
        out = folds == fold
        path = fit_path(examples.embeddings[~out], examples.truth[~out], examples.exclusive, STRENGTHS, _ROUGHLY)
        for place, fitted in enumerate(path):
            scores[place, out] = fitted.scores(examples.embeddings[out], examples.exclusive)
            energies[place, out] = np.logaddexp.reduce(fitted.logits(examples.embeddings[out]), axis=1)
    best = int(np.argmin([log_loss(found, examples.truth, examples.exclusive) for found in scores]))
    return STRENGTHS[best], scores[best], energies[best]


def _exit_temperatures(examples: Examples, folds: Integers, strength: float) -> dict[str, float]:
    """By cut, the temperature that makes the scores of its exit's embeddings most honest on held-out windows.

    An exit with too few known windows has none.
    """
    known = {cut: np.isfinite(embeddings).all(axis=1) for cut, embeddings in examples.by_exit.items()}
    losses = {cut: np.zeros(len(TEMPERATURES)) for cut, rows in known.items() if rows.sum() >= _FEW_WINDOWS}
    for fold in np.unique(folds) if losses else ():
        inside = folds != fold
        (fitted,) = fit_path(
            examples.embeddings[inside], examples.truth[inside], examples.exclusive, [strength], _ROUGHLY
        )
        for cut, loss in losses.items():
            out = known[cut] & ~inside
            for place, temperature in enumerate(TEMPERATURES if out.any() else ()):
                scores = fitted.scores(examples.by_exit[cut][out], examples.exclusive, temperature)
                loss[place] += out.sum() * log_loss(scores, examples.truth[out], examples.exclusive)
    return {cut: TEMPERATURES[int(np.argmin(loss))] for cut, loss in losses.items()}


def _min_energy(examples: Examples, energies: Floats) -> float:
    """The energy, `ln sum exp` of the logits, that KNOWN_KEPT of the held-out windows (windows,) with a label reach.

    Windows that are only background do not count. Liu et al. 2020, arXiv 2010.03759, equation 4.
    """
    known = examples.truth[:, [label != BACKGROUND for label in examples.labels]].any(axis=1)
    return float(np.quantile(energies[known], 1 - KNOWN_KEPT))


def _thresholds(scores: Floats, truth: Bools) -> Floats:
    """For each label the score that detects it best (largest F1), halfway to the next lower one; at least one half.

    Below one half, another label or none is more likely: sounds that were never labelled have such scores.
    """
    return np.maximum(0.5, [_best_threshold(column, right) for column, right in zip(scores.T, truth.T, strict=True)])


def _best_threshold(scores: Floats, truth: Bools) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    best = int(np.argmax(f1))
    here, below = scores[order[best]], scores[order[min(best + 1, len(order) - 1)]]
    return float((here + below) / 2)


def _validate(examples: Examples, scores: Floats, folds: Integers) -> Validation:
    groups, first = np.unique(examples.groups, return_index=True)
    mean = mean_by_group(scores, examples.groups)
    count = len(np.unique(folds))
    return Validation(
        split=f"{count} folds by {examples.unit}" if examples.folds is None else f"the {count} folds given",
        windows=len(scores),
        groups=len(groups),
        accuracy=_accuracy(scores, examples.truth, examples.exclusive),
        group_accuracy=_accuracy(mean, examples.truth[first], examples.exclusive),
        average_precision=average_precision(scores, examples.truth),
    )


def _accuracy(scores: Floats, truth: Bools, exclusive: bool) -> float:
    return float(right_rows(scores, truth, exclusive).mean())


def right_rows(scores: Floats, truth: Bools, exclusive: bool) -> Bools:
    """(rows,) whether all labels are right: the best one, or those with a score of at least one half."""
    if exclusive:
        return np.asarray(truth[np.arange(len(truth)), scores.argmax(axis=1)])
    return np.asarray(((scores >= 0.5) == truth).all(axis=1))


def mean_by_group(scores: Floats, groups: Integers) -> Floats:
    """(distinct groups in ascending order, labels): the mean scores of each group's windows (windows, labels)."""
    _, inverse = np.unique(groups, return_inverse=True)
    mean = np.zeros((inverse.max() + 1, scores.shape[1]))
    np.add.at(mean, inverse, scores)
    return np.asarray(mean / np.bincount(inverse)[:, None])


def truth_of(labels: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], Bools]:
    """The distinct labels in order, and (windows, labels) which window has which."""
    names = tuple(sorted({label for own in labels for label in own}))
    places = {name: place for place, name in enumerate(names)}
    truth = np.zeros((len(labels), len(names)), np.bool_)
    for row, own in enumerate(labels):
        truth[row, [places[label] for label in own]] = True
    return names, truth
