"""Recognises words and speakers in what leaves a device, as well as a simple and strong attacker can.

    attack = attack_on(arrived, spoken, seed)
    attack.words, attack.speakers           # whether each judged recording was recognised

Three attackers try, and the best one counts, on people whom none of them has heard: a small convolutional network on
what arrived, kernel ridge regression on the same, and kernel ridge regression on the embedding that the encoder's
remaining blocks make of it. The network learns words and speakers at once. To tell speakers apart whom it has never
heard, each of some speakers' recordings is recognised by kernel ridge regression on their other recordings, in what
arrived, in the network's features, or in the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsplit_compile.audit.early_stopping import train_until_worse
from streamsplit_compile.audit.kernel_regression import Scores, gaussian_kernel, linear_kernel, ridge_scores
from streamsplit_compile.audit.outlets import Array, Arrived
from streamsplit_compile.audit.spoken_recordings import Numbers, SpokenRecordings

SPEAKERS = 20
"""The most speakers to tell apart: of those judged, the ones with most recordings."""
LEAST_RECORDINGS = 5
"""The fewest recordings of each of them."""
_KEPT_ASIDE = 0.15
"""Share of the speakers to learn from whose recordings choose penalties and epochs."""
_BATCH, _RATE = 64, 3e-3
_FEATURES = 128
_STAGES = (24, 32, 48, 64)
_SPEAKER_FOLDS = 5
_PENALTIES: Scores = np.float64(10.0) ** np.arange(-4, 2)
_SHIFT = 0.1
"""How far a training example may be moved in time, as a share of its length."""
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Attack:
    """What the best attackers recognised."""

    words: Flags
    """Of each judged recording, whether its word was recognised."""
    words_by: str
    speakers: Flags | None
    """Of each recording of the speakers told apart, whether its speaker was; None with too few recordings of each."""
    speakers_by: str


def attack_on(arrived: Arrived, spoken: SpokenRecordings, seed: int) -> Attack:
    """Train every attacker and judge the best one; the same seed gives the same result."""
    random = np.random.default_rng(seed)
    learning = np.unique(spoken.speakers[~spoken.test])
    aside = random.permutation(learning)[: max(1, round(_KEPT_ASIDE * len(learning)))]
    choosing = ~spoken.test & np.isin(spoken.speakers, aside)
    train = ~spoken.test & ~choosing
    values, classes = standardised(arrived.values, train), len(spoken.vocabulary)
    network = train_network(values, spoken, train, choosing, seed)
    scores, features = network_scores(network, values)
    candidates: dict[str, npt.NDArray[np.floating[Any]]] = {"network": scores}
    views = {"activation": values.reshape(len(values), -1), "embedding": standardised(arrived.embeddings, train)}
    for name, view in views.items():
        candidates[f"regression on the {name}"] = _best_ridge(view, spoken.words, classes, train, choosing)
    right = {name: found.argmax(1) == spoken.words for name, found in candidates.items()}
    best = max(right, key=lambda name: right[name][spoken.test].mean())
    told, told_by = _tell_speakers({**views, "network's features": features}, spoken, seed)
    return Attack(right[best][spoken.test], best, told, told_by)


def target_recordings(spoken: SpokenRecordings) -> Numbers:
    """Places of the recordings of the speakers to tell apart; none if fewer than two have enough of them."""
    numbers, counts = np.unique(spoken.speakers[spoken.test], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:SPEAKERS]
    chosen = numbers[order][counts[order] >= LEAST_RECORDINGS]
    if len(chosen) < 2:
        return np.empty(0, np.int64)
    return np.flatnonzero(spoken.test & np.isin(spoken.speakers, chosen))


class Network(nn.Module):
    """From images (n, channels, rows, columns) to features, and from these to scores of words and of speakers."""

    def __init__(self, shape: tuple[int, int, int], words: int, speakers: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        layers: list[nn.Module] = []
        if rows * columns == 1:
            layers += [nn.Flatten(), nn.Linear(channels, 2 * _FEATURES), nn.BatchNorm1d(2 * _FEATURES), nn.ReLU()]
            size = 2 * _FEATURES
        else:
            for width in _STAGES:
                step = 1 if rows * columns <= 64 else 2
                layers += [nn.Conv2d(channels, width, 3, step, 1), nn.BatchNorm2d(width), nn.ReLU()]
                channels, rows, columns = width, -(-rows // step), -(-columns // step)
            grid = min(4, rows), min(4, columns)
            layers += [nn.AdaptiveAvgPool2d(grid), nn.Flatten()]
            size = channels * grid[0] * grid[1]
        self.body = nn.Sequential(*layers, nn.Dropout(0.3), nn.Linear(size, _FEATURES), nn.ReLU())
        self.words, self.speakers = nn.Linear(_FEATURES, words), nn.Linear(_FEATURES, speakers)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (n, 128), scores of words (n, words) and of speakers (n, speakers)."""
        features = self.body(images)
        return features, self.words(features), self.speakers(features)


def train_network(values: Array, spoken: SpokenRecordings, train: Flags, choosing: Flags, seed: int) -> Network:
    """A network trained on some recordings, as it was after the epoch that did best on `choosing`."""
    images, words = torch.from_numpy(values), torch.from_numpy(spoken.words)
    known, numbers = np.unique(spoken.speakers[train], return_inverse=True)
    speakers = torch.zeros(len(values), dtype=torch.long)
    speakers[torch.from_numpy(train)] = torch.from_numpy(numbers)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(values.shape[1:], len(spoken.vocabulary), len(known))
        optimiser = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=0.05)

        def loss(batch: Tensor) -> Tensor:
            _, by_word, by_speaker = network(_moved(images[batch], random))
            of_words = functional.cross_entropy(by_word, words[batch], label_smoothing=0.1)
            return of_words + 0.5 * functional.cross_entropy(by_speaker, speakers[batch], label_smoothing=0.1)

        def quality() -> float:
            scores, _ = network_scores(network, values[choosing])
            return float((scores.argmax(1) == spoken.words[choosing]).mean())

        train_until_worse(network, np.flatnonzero(train), _BATCH, optimiser, random, loss, quality)
    return network


def network_scores(network: Network, values: Array) -> tuple[Array, Array]:
    """Scores of words (n, words) and features (n, 128) of images (n, channels, rows, columns)."""
    network.eval()
    with torch.inference_mode():
        found = [network(part) for part in torch.split(torch.from_numpy(values), 256)]
    return torch.cat([one[1] for one in found]).numpy(), torch.cat([one[0] for one in found]).numpy()


def _moved(images: Tensor, random: np.random.Generator) -> Tensor:
    """Images moved a little in time, which is their last axis."""
    most = int(_SHIFT * images.shape[-1])
    return images.roll(int(random.integers(-most, most + 1)), -1) if most else images


def standardised(values: Array, train: Flags) -> Array:
    """Values (n, channels, ...) with mean 0 and deviation 1 in each channel over the recordings `train`."""
    axes = (0, *range(2, values.ndim))
    mean, deviation = values[train].mean(axes, keepdims=True), values[train].std(axes, keepdims=True)
    found: Array = ((values - mean) / np.maximum(deviation, 1e-6)).astype(np.float32)
    return found


def _kernels(rows: Array) -> Iterator[Scores]:
    """A linear and a Gaussian kernel (n, n) of rows (n, values)."""
    yield linear_kernel(rows)
    yield gaussian_kernel(rows)


def _best_ridge(
    view: Array, labels: Numbers, classes: int, train: Flags, choosing: Flags
) -> npt.NDArray[np.floating[Any]]:
    """Scores (n, classes) of kernel ridge regression on `train`, with what does best on `choosing`."""
    targets, best, found = np.eye(classes)[labels[train]], -1.0, np.zeros((len(view), classes))
    for kernel in _kernels(view):
        for penalty in _penalties(kernel[np.ix_(train, train)]):
            scores = ridge_scores(kernel[:, train], train, targets, penalty)
            share = float((scores[choosing].argmax(1) == labels[choosing]).mean())
            if share > best:
                best, found = share, scores
    return found


def _penalties(own: Scores) -> Scores:
    """Those to choose from, for a kernel (n, n)."""
    return _PENALTIES * max(float(np.trace(own)) / len(own), 1e-12)


def _tell_speakers(views: dict[str, Array], spoken: SpokenRecordings, seed: int) -> tuple[Flags | None, str]:
    """Whether each recording of the speakers to tell apart is recognised by their others, by the best view of them."""
    places = target_recordings(spoken)
    if not len(places):
        return None, ""
    names, labels = np.unique(spoken.speakers[places], return_inverse=True)
    folds = _spread(labels, seed)
    found = {name: _cross_validated(view[places], labels, len(names), folds) for name, view in views.items()}
    best = max(found, key=lambda name: found[name][1])
    return found[best][0], f"regression on the {best}"


def _spread(labels: Numbers, seed: int) -> Numbers:
    """A fold for each recording, with each speaker's spread over all folds."""
    random, folds = np.random.default_rng(seed), np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label))
        folds[own] = np.arange(len(own)) % _SPEAKER_FOLDS
    return folds


def _cross_validated(view: Array, labels: Numbers, classes: int, folds: Numbers) -> tuple[Flags, float]:
    """Whether each recording is recognised, and how many an attacker would expect by leaving out one of its own."""
    right, expected = np.zeros(len(labels), np.bool_), []
    kernels = list(_kernels(view))
    for fold in np.unique(folds):
        train = folds != fold
        targets = np.eye(classes)[labels[train]] - 1 / classes
        best, scores = -1.0, np.zeros((int((~train).sum()), classes))
        for kernel in kernels:
            own = kernel[np.ix_(train, train)]
            for penalty in _penalties(own):
                inverse = np.linalg.inv(own + penalty * np.eye(len(own)))
                weights = inverse @ targets
                left_out = targets - weights / np.diag(inverse)[:, None]
                share = float((left_out.argmax(1) == labels[train]).mean())
                if share > best:
                    best, scores = share, kernel[np.ix_(~train, train)] @ weights
        right[~train] = scores.argmax(1) == labels[~train]
        expected.append(best)
    return right, float(np.mean(expected))


def interval(right: Sequence[Flags], z: float = 1.96) -> tuple[float, float, float]:
    """Mean share over seeds, and Wilson's 95 % interval for as many recordings as one seed judges.

    (Wilson 1927.) Seeds judge the same recordings, so more of them make the interval no narrower.
    """
    count, rate = len(right[0]), float(np.mean([one.mean() for one in right]))
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)))
    return rate, max(0.0, min(rate, middle - half)), min(1.0, max(rate, middle + half))
