"""Whether a recording was trained on can be told where embeddings say so, and not where they do not."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from streamsplit_compile.audit.membership import auroc, membership_auroc


def test_embeddings_that_differ_for_what_was_trained_on_give_it_away(spoken):
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(len(spoken.words), 6)).astype(np.float32)
    embeddings[~spoken.test, 0] += 4.0
    area, low, high = membership_auroc(embeddings, spoken, seed=0)
    assert area > 0.9
    assert low <= area <= high


def test_the_area_is_that_of_the_rank_test():
    random = np.random.default_rng(0)
    positive, negative = random.normal(0.5, 1, 40).round(1), random.normal(0, 1, 30).round(1)
    area, low, high = auroc(positive, negative)
    assert area == pytest.approx(mannwhitneyu(positive, negative).statistic / 1200)
    assert low < area < high
