"""A step of several ranks is a step of one: same loss, same weights, whoever has the windows."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from runtime_edge.errors import FormatError
from runtime_server.releases.release_gate import first_model
from runtime_server.training.augment import AugmentConfig
from runtime_server.training.buffer import TrainingWindow
from runtime_server.training.checkpoint import Checkpoints, resumed
from runtime_server.training.losses import HybridConfig
from runtime_server.training.losses.objectives import OBJECTIVES
from runtime_server.training.ranks import Ranks
from runtime_server.training.trainer import TrainConfig, Trainer

pytestmark = pytest.mark.integration

PLAIN = AugmentConfig(time_mask=0, frequency_mask=0, gain_db=0, noise=0, mix=0, shift=0)
DEVICES = (("pi-1", 1), ("pi-2", 3))
"""Each with its cut: what one of them trains, the other has no gradient for."""
WINDOWS, TRAINED = 64, 56
WHOLE = len(DEVICES) * TRAINED


@pytest.fixture
def trainer_of(generations):
    copying = threading.Lock()

    def make(ranks=None, batch=WHOLE, **config):
        # Every window is in every batch and every window of a device its neighbour: order cannot matter.
        settings = {"augment": PLAIN, "virtual_negatives": 0, "loss": HybridConfig(neighbours=WINDOWS), **config}
        with copying:  # warnings are filtered for all threads meanwhile
            model = first_model(generations.graph, generations.newest)
            return Trainer(model, TrainConfig(batch=batch, min_windows=8, learning_rate=1e-3, **settings), 6, ranks)

    return make


@pytest.fixture
def give(sounds, activation):
    # Made here: one prefix must not run in two threads.
    made = {
        device: [
            TrainingWindow(device, "boot", index, 1, cut, torch.from_numpy(activation(sounds[index], cut)))
            for index in range(WINDOWS)
        ]
        for device, cut in DEVICES
    }

    def take(trainer, device, name=None):
        for window in made[device]:
            trainer.add(replace(window, device=name or device))

    return take


def weights(trainer):
    return [value.numpy().copy() for value in trainer.model.module.state_dict().values()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_ranks_with_half_the_batch_each_take_the_step_of_one_with_all_of_it(trainer_of, give, together, objective):
    whole = trainer_of(objective=objective)
    for device, _ in DEVICES:
        give(whole, device)

    def work(ranks):
        trainer = trainer_of(ranks, objective=objective)
        give(trainer, DEVICES[ranks.rank][0])
        steps = [trainer.step() for _ in range(4)]
        return [step.losses for step in steps], trainer.judge([trainer.model]), weights(trainer)

    expected = [whole.step().losses for _ in range(4)]
    (first, first_judged, first_weights), (second, second_judged, second_weights) = together(2, work)
    assert first == second
    assert first_judged == second_judged
    assert all(np.array_equal(one, other) for one, other in zip(first_weights, second_weights, strict=True))
    for found, wanted in zip(first, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    for found, wanted in zip(first_weights, weights(whole), strict=True):
        assert np.allclose(found, wanted, rtol=1e-4, atol=2e-5)
    (wanted,) = whole.judge([whole.model])
    losses, expected = (sorted(judgement.loss for judgement in judged) for judged in (first_judged[0], wanted))
    assert losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_rank_without_windows_takes_part_and_learns_the_same(trainer_of, give, together, objective):
    def work(ranks):
        trainer = trainer_of(ranks, batch=24, augment=AugmentConfig(), virtual_negatives=8, objective=objective)
        if ranks.rank == 1:
            give(trainer, DEVICES[0][0])
        before = weights(trainer)
        losses = [trainer.step().losses["total"] for _ in range(3)]
        after = weights(trainer)
        assert any(not np.array_equal(one, other) for one, other in zip(before, after, strict=True))
        return losses, trainer.fingerprint()

    first, second, third = together(3, work)
    assert first == second == third


def test_every_device_has_the_same_share_of_a_batch_whichever_rank_has_it(trainer_of, give, together):
    def work(ranks):
        trainer = trainer_of(ranks, batch=8)
        for number in range((3, 0, 1)[ranks.rank]):
            give(trainer, DEVICES[0][0], f"pi-{number}")
        return trainer.step().windows

    assert together(3, work) == [6, 0, 2]


def test_ranks_draw_windows_and_views_of_their_own(trainer_of):
    seeds = {Ranks(rank, 4).seed(7) for rank in range(4)}
    assert len(seeds) == 4
    assert Ranks().seed(7) == 7, "one process draws as it always did"


def test_all_ranks_go_on_from_the_first_ones_weights_and_each_from_its_own_windows(
    trainer_of, give, together, tmp_path
):
    path = tmp_path / "checkpoint.pt"

    def train(ranks):
        trainer = trainer_of(ranks, batch=8)
        give(trainer, DEVICES[ranks.rank][0])
        trainer.step()
        trainer.trained.add(10 + ranks.rank)
        Checkpoints(path, "tiny", ranks.rank).save(trainer)
        return trainer.fingerprint()

    def resume(ranks):
        trainer = resumed(lambda: trainer_of(ranks, batch=8), Checkpoints(path, "tiny", ranks.rank))
        return trainer.fingerprint(), trainer.steps, 10 in trainer.trained, 11 in trainer.trained

    fingerprint, _ = together(2, train)
    assert together(2, resume) == [(fingerprint, 1, True, False), (fingerprint, 1, False, True)]
    (tmp_path / "checkpoint-1.pt").write_bytes(b"damaged")
    assert together(2, resume)[1] == (fingerprint, 1, False, False)
    assert together(3, resume)[2] == (fingerprint, 1, False, False), "a rank that was not there before"


def test_ranks_that_start_from_different_weights_say_so(together):
    def work(ranks):
        ranks.check_alike(7, "weights")
        with pytest.raises(FormatError, match="weights are not those of the other ranks"):
            ranks.check_alike(ranks.rank, "weights")

    together(2, work)
