"""Whether a recording was trained on can be told where embeddings say so, and not where they do not."""

import numpy as np
import pytest

from streamsplit_compile.audit.membership import auroc, membership_auroc


def test_embeddings_that_differ_for_what_was_trained_on_give_it_away(spoken):
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(len(spoken.words), 6)).astype(np.float32)
    embeddings[~spoken.test, 0] += 4.0
    area, low, high = membership_auroc(embeddings, spoken, seed=0)
    assert area > 0.9
    assert low <= area <= high


def test_the_area_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(0)
    positive, negative = random.normal(0.5, 1, 40).round(1), random.normal(0, 1, 30).round(1)
    area, low, high = auroc(positive, negative)
    pairs = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    assert area == pytest.approx(np.mean(pairs))
    assert low < area < high
