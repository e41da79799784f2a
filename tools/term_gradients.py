"""Measures each loss term's share of a training step: the norm of its weighted gradient over that of the task's.

    python -m tools.term_gradients --audio recordings/ --weights mn04_as_mAP_432.pt [--publish]

It is measured from both starts of `tools.bench_learning`, on its windows, before the first step and twice in the first
pass over the recordings. The weights are the published ones; a term's share is proportional to its weight.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from runtime_server.training.losses import HybridConfig, HybridLoss
from runtime_server.training.objective import batch_loss, batch_of, virtual_negatives
from runtime_server.training.trainer import Trainer
from tools.bench_learning import STARTS, LearningBench, ProbedRuns, StartingWeights
from tools.benchmarks import Section, publish, show
from tools.esc10 import load_clips
from tools.sparse_training import HYBRID, TERMS, TrainingRun, train

MEASURED_AFTER = (0, 18, 45)
"""The numbers of steps after which shares are measured."""


@dataclass(frozen=True)
class Shares:
    """The gradients of the weighted terms over the task's, after some number of steps."""

    steps: int
    spread: float
    laplacian: float


def shares(trainer: Trainer, loss: HybridConfig = HYBRID, seed: int = 0) -> Shares:
    """The shares on the next batch that a generator with this seed draws; the trainer is not changed."""
    config, generator = trainer.config, torch.Generator().manual_seed(seed)
    groups = trainer.buffer.sample_batch(np.random.default_rng(seed), config.batch)
    segments, width = trainer.model.segments, trainer.memory.dim
    own = batch_of(groups, segments, width, generator, config.augment)
    own = replace(own, negatives=virtual_negatives(own.anchors, trainer.memory, config.virtual_negatives, generator))
    trained = [parameter for parameter in trainer.model.module.parameters() if parameter.requires_grad]

    def norm(term: HybridConfig) -> float:
        total, _ = batch_loss(own, HybridLoss(term))
        found = torch.autograd.grad(total, trained, retain_graph=True, allow_unused=True)
        return float(torch.stack([part.norm() for part in found if part is not None]).norm())

    task = norm(replace(loss, spread=None, laplacian=False))
    spread = norm(replace(loss, task=False, laplacian=False))
    return Shares(trainer.steps, spread / task, norm(replace(loss, task=False, spread=None)) / task)


def measured(bench: LearningBench, start: StartingWeights) -> list[Shares]:
    """Measure the shares from one start while it learns with the task alone."""
    found: list[Shares] = []

    def note(trainer: Trainer) -> None:
        if trainer.steps in MEASURED_AFTER:
            found.append(shares(trainer))

    run = TrainingRun(TERMS["task"], learning_rate=start.learning_rate, augment=start.augment, passes=1)
    with tempfile.TemporaryDirectory() as work:
        train(bench.stage(start, 0, Path(work)), run, before_steps=note)
    return found


def section(found: dict[StartingWeights, list[Shares]]) -> Section:
    """The figures for the page."""
    told = Section(
        "server", "The server: how much of a step each term is", "python -m tools.term_gradients", "gradients"
    )
    for start, several in found.items():
        for name, weight in (("spread", HYBRID.lambda1), ("laplacian", HYBRID.lambda2)):
            by_steps = ", ".join(f"{100 * getattr(one, name):.2f} % after {one.steps}" for one in several)
            what = f"{start.title}: gradient of {weight:g} of the term over the task's, most; by steps {by_steps}"
            told.add(f"term_gradient.{start.name}_{name}", max(getattr(one, name) for one in several), "", what)
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; nothing without the recordings and the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, default=os.environ.get("SSC_TEST_AUDIO"))
    parser.add_argument("--weights", type=Path, default=os.environ.get("SSC_TEST_WEIGHTS"), help="The checkpoint.")
    parser.add_argument("--publish", action="store_true", help="Put the figures into docs/benchmarks.*.")
    given = parser.parse_args(arguments)
    if given.audio is None or given.weights is None:
        print("left out: --audio (SSC_TEST_AUDIO) and --weights (SSC_TEST_WEIGHTS) are needed")
        return
    torch.set_num_threads(1)
    audio = Path(given.audio)
    bench = LearningBench(load_clips(audio), audio, Path(given.weights), quick=False, found=ProbedRuns())
    figures = section({start: measured(bench, start) for start in STARTS})
    (publish if given.publish else show)(figures)


if __name__ == "__main__":
    main()
