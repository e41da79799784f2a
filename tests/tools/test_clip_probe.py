"""A linear probe of the recordings of one fold is the whole probe's."""

from __future__ import annotations

import numpy as np

from tools.clip_probe import probe, probe_clips


def test_recordings_alone_are_judged_as_beside_all_else() -> None:
    rng = np.random.default_rng(0)
    labels, folds = np.repeat(np.arange(4), 20), np.tile(np.arange(1, 6), 16)
    embeddings = np.eye(4)[labels][:, None] + rng.standard_normal((80, 3, 4))
    found = probe_clips(embeddings.astype(np.float32), labels, folds, 5)
    assert 0.5 < found < 1
    assert found == probe(embeddings.astype(np.float32), labels, folds, 5).clip
