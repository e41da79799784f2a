"""What devices send and the server's trainer learns from, in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime_server.training.losses.objectives.interface import NEARBY
from runtime_server.training.trainer import Trainer
from tools.bench_objectives import SMALL, staged
from tools.sparse_training import HYBRID, Stage, TrainingRun, train
from tools.term_gradients import shares

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def stage(two_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return staged(SMALL, 0, two_words, tmp_path_factory.mktemp("work"), None)


def trainers(stage: Stage, **run: int) -> list[Trainer]:
    """The trainer, once it had windows; it has taken no step."""
    found: list[Trainer] = []
    settings = TrainingRun(kept_share=1.0, passes=1, batch=16, steps_per_chunk=0, **run)
    train(stage, settings, before_steps=found.append)
    return found


@pytest.mark.parametrize(("pause", "nearest"), [(0, 1), (NEARBY, NEARBY + 1)])
def test_with_a_pause_windows_of_two_recordings_are_never_neighbours(stage: Stage, pause: int, nearest: int) -> None:
    trainer = trainers(stage, pause=pause)[-1]
    groups = trainer.buffer.sample_batch(np.random.default_rng(0), 64)
    gaps: list[int] = []
    for device in {chain for group in groups for chain in group.chains.tolist()}:
        own = [window for group in groups for window in group.windows[group.chains == device].tolist()]
        gaps += np.diff(sorted(own)).tolist()
    assert len(gaps) > 30
    assert min(gaps) == nearest


def test_a_term_counts_in_proportion_to_its_weight_and_measuring_leaves_the_trainer_as_it_is(stage: Stage) -> None:
    trainer = trainers(stage)[-1]
    before = trainer.fingerprint()
    usual = shares(trainer)
    stronger = shares(trainer, replace(HYBRID, lambda1=10 * HYBRID.lambda1, lambda2=20 * HYBRID.lambda2))
    assert trainer.fingerprint() == before
    assert 0 < usual.laplacian < usual.spread < 1
    assert stronger.spread == pytest.approx(10 * usual.spread, rel=1e-3)
    assert stronger.laplacian == pytest.approx(20 * usual.laplacian, rel=1e-3)
