"""Simulates devices that each hear a few speakers and words, some of which are replaced at each step.

    fleet = simulate(corpus, recordings, words=5, devices=20, steps=10, seed=0)
    fleet.steps[3][7].learnt           # recordings that device 7 hears at step 3 and sends to the server

Whole speakers belong to one device. Of each device's recordings of each word two in three are learnt from and one in
three is judged; of those that are learnt from one in ten is labelled, in all steps the same ones. Half of a device's
words are replaced at each step by others, drawn by chance; with five words two and three in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.reference.corpus import Corpus, Integers

LABELLED = 0.1


@dataclass(frozen=True)
class Heard:
    """What one device hears in one step: recordings, by number in the corpus."""

    words: Integers
    learnt: Integers
    judged: Integers


@dataclass(frozen=True)
class Fleet:
    """All devices in all steps."""

    steps: list[list[Heard]]
    labelled: frozenset[int]
    """The recordings with a label."""


def simulate(corpus: Corpus, recordings: Integers, words: int, devices: int, steps: int, seed: int) -> Fleet:
    """Devices that share out the recordings of one data set and hear `words` of its classes at a time."""
    random = np.random.default_rng(seed)
    classes = np.unique(corpus.labels[recordings])
    owners = _dealt(corpus, recordings, devices, random)
    learnt, judged, labelled = [], [], set()
    for own in owners:
        parts = [random.permutation(own[corpus.labels[own] == word]) for word in classes]
        judged.append(np.concatenate([part[::3] for part in parts]))
        learnt.append(np.setdiff1d(own, judged[-1]))
        count = max(1, round(LABELLED * len(learnt[-1])))
        labelled |= {int(one) for one in random.permutation(learnt[-1])[:count]}
    known = [random.permutation(classes)[:words] for _ in owners]
    found = []
    for step in range(steps):
        if step:
            count = step * words // 2 - (step - 1) * words // 2
            known = [_moved(own, classes, count, random) for own in known]
        found.append([
            Heard(np.sort(own), *(one[np.isin(corpus.labels[one], own)] for one in (learnt[device], judged[device])))
            for device, own in enumerate(known)
        ])  # fmt: skip
    return Fleet(found, frozenset(labelled))


def _dealt(corpus: Corpus, recordings: Integers, devices: int, random: np.random.Generator) -> list[Integers]:
    """Whole speakers, each to the device with the fewest recordings, so that all have about as many."""
    groups = corpus.groups[recordings]
    speakers = random.permutation(np.unique(groups))
    counts = np.array([(groups == speaker).sum() for speaker in speakers])
    owned: list[list[int]] = [[] for _ in range(devices)]
    totals = np.zeros(devices)
    for place in np.argsort(-counts, kind="stable"):
        device = int(totals.argmin())
        owned[device].append(int(speakers[place]))
        totals[device] += counts[place]
    return [recordings[np.isin(groups, own)] for own in owned]


def _moved(own: Integers, classes: Integers, count: int, random: np.random.Generator) -> Integers:
    """A device's words, with so many of them replaced by words that it did not have."""
    stay = random.permutation(own)[count:]
    return np.concatenate([stay, random.permutation(np.setdiff1d(classes, own))[:count]])
