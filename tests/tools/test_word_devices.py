from itertools import pairwise

import numpy as np
import pytest

from tools.reference.corpus import Corpus
from tools.word_devices import LABELLED, simulate

CLASSES, SPEAKERS, TAKES = 10, 24, 6


@pytest.fixture(scope="module")
def corpus():
    """24 speakers say each of ten words six times."""
    labels = np.tile(np.repeat(np.arange(CLASSES), TAKES), SPEAKERS)
    groups = np.repeat(np.arange(SPEAKERS), CLASSES * TAKES)
    none, count = np.zeros(0), len(labels)
    zeros = np.zeros(count, np.int64)
    return Corpus(none, none, none, zeros, zeros, zeros, labels, zeros, zeros, groups, none)


@pytest.fixture(scope="module", params=[2, 5])
def fleet(corpus, request):
    return simulate(corpus, np.arange(len(corpus.labels)), request.param, 6, 10, 3), request.param


def test_devices_share_no_speaker_and_hear_only_their_words(corpus, fleet):
    found, words = fleet
    speakers = [set(), set(), set(), set(), set(), set()]
    for step in found.steps:
        for device, heard in enumerate(step):
            every = np.concatenate([heard.learnt, heard.judged])
            assert len(heard.words) == words
            assert set(corpus.labels[every]) == set(heard.words)
            speakers[device] |= set(corpus.groups[every])
    assert sum(map(len, speakers)) == len(set.union(*speakers))


def test_nothing_that_is_judged_is_ever_learnt(fleet):
    found, _ = fleet
    learnt = {int(one) for step in found.steps for heard in step for one in heard.learnt}
    assert not learnt & {int(one) for step in found.steps for heard in step for one in heard.judged}
    share = len(learnt & found.labelled) / len(learnt)
    assert share == pytest.approx(LABELLED, abs=0.02)


def test_half_of_the_words_are_replaced_at_each_step(fleet):
    found, words = fleet
    moved = [
        len(set(after.words) - set(before.words))
        for one, next_one in pairwise(found.steps)
        for before, after in zip(one, next_one, strict=True)
    ]
    assert set(moved) == ({1} if words == 2 else {2, 3})
    assert np.mean(moved) == pytest.approx(words / 2, abs=0.1)


def test_the_same_seed_gives_the_same_devices(corpus, fleet):
    found, words = fleet
    again = simulate(corpus, np.arange(len(corpus.labels)), words, 6, 10, 3)
    assert again.labelled == found.labelled
    assert all(
        np.array_equal(a.learnt, b.learnt) and np.array_equal(a.judged, b.judged)
        for one, other in zip(found.steps, again.steps, strict=True)
        for a, b in zip(one, other, strict=True)
    )
