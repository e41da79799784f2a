"""What devices send and the server's trainer learns from, in small."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime_server.training.losses.objectives.interface import NEARBY
from runtime_server.training.trainer import Trainer
from streamsplit_compile.encoder.encoders import load_encoder, new_encoder, save_checkpoint
from tools.bench_objectives import SMALL, staged
from tools.esc10 import load_clips
from tools.sparse_training import HYBRID, Stage, TrainingRun, learn, train
from tools.sparse_training import stage as staged_with
from tools.term_gradients import shares

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def stage(two_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    kept = tmp_path_factory.mktemp("work") / "runs.jsonl"
    return staged(SMALL, 0, Namespace(audio=two_words, kept=kept, quick=False))


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


@pytest.mark.slow
@pytest.mark.skipif("SSC_TEST_AUDIO" not in os.environ, reason="set SSC_TEST_AUDIO (a directory with esc10/)")
def test_training_from_random_weights_goes_on_getting_better(tmp_path: Path) -> None:
    """With negatives of the mixture it stood still after the first pass, and then fell apart."""
    audio = Path(os.environ["SSC_TEST_AUDIO"])
    name, config = "mobilenet_v3_small", {"seed": 0}
    save_checkpoint(name, config, new_encoder(name, config)[0], tmp_path / "encoder.pt", untrained=True)
    heard = staged_with(load_encoder(tmp_path / "encoder.pt"), load_clips(audio), audio, tmp_path)
    after_each: list[float] = []
    run = TrainingRun(passes=2, learning_rate=1e-3)
    found = learn(heard, run, after_pass=lambda model: after_each.append(heard.judged(model).window))
    assert found.before.window + 0.05 < after_each[0]
    assert after_each[0] + 0.03 < after_each[1]
