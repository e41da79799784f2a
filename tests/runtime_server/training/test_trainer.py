"""Training from the middle: what a window at a cut may change, and what nothing changes."""

import copy
import threading

import numpy as np
import pytest
import torch

from runtime_edge.errors import UsageError
from runtime_server.releases.release_gate import first_model
from runtime_server.training.buffer import TemporalBuffer, TrainingWindow
from runtime_server.training.losses.objectives import OBJECTIVES
from runtime_server.training.trainer import HELD_OUT_PERIOD, HELD_OUT_RUN, TrainConfig, Trainer

pytestmark = pytest.mark.integration

BLOCKS = ("stem", "down", "residual", "head")


@pytest.fixture
def trainer_of(generations):
    def make(**config):
        model = first_model(generations.graph, generations.newest)
        return Trainer(model, TrainConfig(**{"batch": 8, **config}), 6)

    return make


@pytest.fixture(scope="module")
def give(sounds, activation):
    """`give(trainer, cut, windows)`: what ingest hands over for windows 0..n-1 at one cut."""

    def take(trainer, cut, count=64, device="pi-1"):
        for index in range(count):
            kept = torch.from_numpy(activation(sounds[index % len(sounds)], cut))
            trainer.add(TrainingWindow(device, "boot", index, 1, cut, kept, 0.5))

    return take


def state(trainer):
    return copy.deepcopy(trainer.model.module.state_dict())


@pytest.mark.parametrize("cut", range(4))
def test_a_window_trains_the_blocks_behind_its_cut_and_no_others(trainer_of, give, cut):
    trainer = trainer_of(min_windows=8)
    give(trainer, cut)
    before = state(trainer)
    for _ in range(3):
        trainer.step()
    after = state(trainer)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(BLOCKS[cut:])
    buffers = dict(trainer.model.module.named_buffers())
    assert any("running_mean" in name for name in buffers)
    assert all(torch.equal(before[name], after[name]) for name in buffers)


def test_blocks_once_trained_rest_while_only_later_cuts_arrive(trainer_of, give):
    trainer = trainer_of(min_windows=8)
    give(trainer, 0, 32, "pi-early")
    trainer.step()  # the optimiser now has momentum for every block
    trainer.buffer = TemporalBuffer()
    give(trainer, 3, 32, "pi-late")
    before = state(trainer)
    trainer.step()
    after = state(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("head"))
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_the_same_seed_gives_the_same_weights_and_another_one_others(trainer_of, give):
    def train(seed):
        trainer = trainer_of(min_windows=8, seed=seed)
        for cut, device in ((0, "pi-1"), (2, "pi-2")):
            give(trainer, cut, 64, device)
        losses = [trainer.step().losses for _ in range(4)]
        return losses, trainer.averaged_tensors()

    (losses, weights), (same_losses, same_weights), (_, other) = train(0), train(0), train(1)
    assert losses == same_losses
    assert all(np.array_equal(weights[name], same_weights[name]) for name in weights)
    assert not np.array_equal(weights["head.weight"], other["head.weight"])


def test_the_average_moves_by_its_share(trainer_of, give):
    trainer = trainer_of(min_windows=8, ema=0.75)
    give(trainer, 1)
    start = state(trainer)["head.weight"]
    trainer.step()
    expected = 0.75 * start + 0.25 * state(trainer)["head.weight"]
    assert np.allclose(trainer.averaged_tensors()["head.weight"], expected.numpy(), atol=1e-7)


def test_runs_of_neighbours_judge_and_never_train(trainer_of, give):
    trainer = trainer_of(min_windows=50)
    give(trainer, 2, 3)
    assert trainer.judge([trainer.model]) is None
    give(trainer, 2, 53)
    assert not trainer.ready
    give(trainer, 2, 64)
    assert trainer.ready
    judges = [window.index for window in trainer.held_out.windows("pi-1")]
    assert [index // HELD_OUT_PERIOD for index in judges] == [0] * HELD_OUT_RUN + [1] * HELD_OUT_RUN
    assert all(
        len({index // HELD_OUT_RUN for index in judges[at : at + HELD_OUT_RUN]}) == 1 for at in (0, HELD_OUT_RUN)
    )
    trained = [window.index for window in trainer.buffer.windows("pi-1")]
    assert sorted(judges + trained) == list(range(64))


def test_a_key_chooses_what_judges_for_each_device_and_boot(generations):
    def judges(key, device="pi-1", boot="boot"):
        model = first_model(generations.graph, generations.newest)
        trainer = Trainer(model, TrainConfig(horizon=4096), 6, key=key)
        trainer.held_out.horizon = 4096
        for index in range(1024):
            trainer.add(TrainingWindow(device, boot, index, 1, 2, torch.zeros(1, 2)))
        return [window.index for window in trainer.held_out.windows(device)]

    found = judges(b"one")
    assert found == judges(b"one")
    assert len(found) == 1024 * HELD_OUT_RUN // HELD_OUT_PERIOD
    others = [judges(b"two"), judges(b"one", device="pi-2"), judges(b"one", boot="again")]
    for other in others:
        assert len(other) == len(found)
        assert len(set(found) & set(other)) < len(found) // 2, "an eighth by chance"
    places = [found.count(index) for index in range(1024)]
    by_run = np.reshape(places, (-1, HELD_OUT_PERIOD)).sum(axis=0)
    assert (by_run > 0).sum() > HELD_OUT_PERIOD // 2, "every place in a period is used"


def test_what_other_devices_send_changes_nothing_of_a_devices_judgement(trainer_of, give):
    def judged(other):
        trainer = trainer_of(min_windows=8)
        for device in ("pi-1", "pi-2"):
            give(trainer, 1, 64, device)
        for index in range(64):
            window = TrainingWindow("evil", "boot", index, 1, 1, other(trainer.buffer.windows("pi-1")[0].activation))
            trainer.add(window)
        return trainer.judge([trainer.model])[0]

    quiet, loud = judged(torch.zeros_like), judged(lambda activation: torch.full_like(activation, 50.0))
    assert len(quiet) == len(loud) == 3
    assert quiet[1:] == loud[1:]


def test_a_device_with_one_run_of_held_out_windows_has_no_say(trainer_of, give):
    trainer = trainer_of(min_windows=8)
    give(trainer, 1, 64, "pi-1")
    give(trainer, 1, 32, "pi-2")
    assert len(trainer.judge([trainer.model])[0]) == 1


def test_embeddings_of_whole_encoders_are_no_use_for_training(trainer_of, give):
    trainer = trainer_of(min_windows=1)
    give(trainer, 4)
    assert not trainer.ready
    assert trainer.sizes()["held_out"].windows == 0


def test_a_window_out_of_range_neither_trains_nor_judges_and_is_counted_for_its_device(trainer_of, give):
    trainer = trainer_of(min_windows=8)
    give(trainer, 1, 64)
    kept = trainer.sizes()
    for index in range(64):
        window = TrainingWindow("evil", "boot", index, 1, 1, torch.zeros(1, 2), sequence=100 + index, in_range=False)
        trainer.add(window)
    assert trainer.sizes() == kept
    assert trainer.out_of_range() == {"evil": 64}
    assert 163 in trainer.trained, "it is not read again after a restart"


def test_what_arrives_changes_the_mixture_through_batches_alone(trainer_of, give):
    trainer = trainer_of(min_windows=8, objective="virtual-negatives")
    give(trainer, 1, 64, "pi-1")
    give(trainer, 1, 64, "pi-2")
    for _ in range(9):
        trainer.step()
    assert trainer.memory.windows == 9 * 8
    before = trainer.memory.to_bytes()
    for boot in range(20):
        for index in range(64):
            trainer.add(
                TrainingWindow("fast", f"boot-{boot}", index, 1, 1, trainer.buffer.windows("pi-1")[0].activation)
            )
        give(trainer, 4, 64, "fast")
    assert trainer.memory.to_bytes() == before
    trainer.step()
    assert trainer.memory.windows == 10 * 8
    assert trainer.memory.to_bytes() != before


def test_models_are_judged_on_the_same_windows_and_views(trainer_of, give):
    trainer = trainer_of(min_windows=8)
    give(trainer, 1, 64)
    first, second = trainer.judge([trainer.model, trainer.model])
    assert first == second == trainer.judge([trainer.model])[0]


def test_a_batch_that_explodes_changes_nothing(trainer_of, give):
    trainer = trainer_of(min_windows=8)
    give(trainer, 1)
    with torch.no_grad():
        trainer.model.module.get_parameter("down.0.weight").mul_(1e38)
    before = state(trainer)
    trainer.step()
    assert all(torch.equal(before[name], value) for name, value in state(trainer).items())
    assert all(np.isfinite(value).all() for value in trainer.averaged_tensors().values())


def test_a_frozen_parameter_stays(generations, give):
    model = first_model(generations.graph, generations.newest)
    model.module.get_parameter("head.bias").requires_grad_(False)
    trainer = Trainer(model, TrainConfig(batch=8, min_windows=8), 6)
    give(trainer, 2)
    before = state(trainer)
    trainer.step()
    after = state(trainer)
    assert torch.equal(before["head.bias"], after["head.bias"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_windows_may_arrive_while_it_trains(trainer_of, give):
    trainer, failures = trainer_of(min_windows=8), []
    give(trainer, 1, 16)

    def arrive():
        try:
            for device in range(6):
                give(trainer, 1, 40, f"pi-{device}")
        except Exception as exc:
            failures.append(exc)

    thread = threading.Thread(target=arrive)
    thread.start()
    while thread.is_alive():
        trainer.step()
        trainer.judge([trainer.model])
    assert not failures


def test_the_first_steps_are_shorter(trainer_of, give):
    trainer = trainer_of(min_windows=8, warm_up_steps=4, learning_rate=0.1)
    give(trainer, 1)
    rates = []
    for _ in range(6):
        trainer.step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_the_blocks_behind_the_cut_and_what_is_its_own(trainer_of, give, objective):
    trainer = trainer_of(min_windows=8, objective=objective)
    give(trainer, 1)
    before, own = state(trainer), copy.deepcopy(trainer.objective.state_dict())
    losses = [trainer.step().losses for _ in range(4)]
    after = state(trainer)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(BLOCKS[1:])
    assert all(loss.keys() == {"task", "total"} for loss in losses)
    assert all(np.isfinite(list(loss.values())).all() for loss in losses)
    moved = {name for name, value in trainer.objective.state_dict().items() if not torch.equal(own[name], value)}
    parts = {name.split(".")[0] for name in moved}
    assert parts == {"moco": {"encoder", "queue", "windows", "chains"}, "simsiam": {"predictor"}}.get(objective, set())


def test_objectives_are_judged_by_the_same_measure(trainer_of, give):
    judged = []
    for objective in OBJECTIVES:
        trainer = trainer_of(min_windows=8, objective=objective)
        give(trainer, 1)
        judged.append(trainer.judge([trainer.model]))
    assert all(other == judged[0] for other in judged)


def test_the_mixture_costs_nothing_where_no_virtual_negatives_are_wanted(trainer_of, give):
    for objective, windows in (("virtual-negatives", 8), ("neighbours", 0)):
        trainer = trainer_of(min_windows=8, objective=objective)
        give(trainer, 1)
        trainer.step()
        assert trainer.memory.windows == windows


def test_a_momentum_encoder_stays_behind_the_trained_one(trainer_of, give):
    trainer = trainer_of(min_windows=8, objective="moco", learning_rate=0.1)
    give(trainer, 1)
    start = state(trainer)["head.weight"]
    for _ in range(4):
        trainer.step()
    key, trained = trainer.objective.key_segments[-1].state_dict()["head.weight"], state(trainer)["head.weight"]
    assert 0 < (key - start).norm() < 0.2 * (trained - start).norm()


def test_an_unknown_objective_is_named():
    with pytest.raises(UsageError, match="objective: unknown 'byol', choose one of neighbours, virtual-negatives"):
        TrainConfig(objective="byol")


@pytest.mark.parametrize(
    ("devices", "windows"), [(0, 32), (1, 32), (4, 32), (5, 40), (9, 72), (10, 80), (32, 256), (33, 256), (1000, 256)]
)
def test_a_batch_grows_with_the_devices_up_to_eight_times_its_size(devices, windows):
    assert TrainConfig().batch_for(devices) == windows


def test_a_further_device_takes_no_places_from_the_others(trainer_of, give):
    trainer, places = trainer_of(min_windows=8), []
    for device in range(10):
        give(trainer, 2, 32, f"pi-{device}")
        places.append(trainer.step().windows)
    assert places == [8, 8, 8, 8, 10, 12, 14, 16, 18, 20]


def test_a_device_whose_windows_are_all_out_of_range_makes_no_batch_larger(trainer_of, give):
    trainer = trainer_of(min_windows=8)
    for device in range(4):
        give(trainer, 2, 32, f"pi-{device}")
    for index in range(32):
        trainer.add(TrainingWindow("zz", "boot", index, 1, 2, torch.zeros(1), in_range=False))
    assert trainer.step().windows == 8
