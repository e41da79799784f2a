"""Releases: what may pass, what is recompiled, and what is on disk before anybody is told."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.manifest import Calibration
from runtime_edge.inference.prefix import Prefix
from runtime_server.labels.linear_probe import LinearProbe
from runtime_server.releases.release_gate import Quality, ReleaseConfig, ReleaseGate, first_model
from runtime_server.releases.rollout import Rollout, RolloutConfig
from runtime_server.state.server_state import ServerState
from runtime_server.training.buffer import TrainingWindow
from runtime_server.training.losses import HybridConfig
from runtime_server.training.trainer import TrainConfig, Trainer
from streamsplit_compile.bundle.calibrate import CalibrationSet

pytestmark = pytest.mark.integration


def calibration(sounds):
    """What a release is recompiled with."""
    return CalibrationSet(sounds[:4], sounds[8:12], Calibration(source="recordings", windows=4, seed=0))


@pytest.fixture
def state(tmp_path):
    return ServerState(tmp_path / "server")


@pytest.fixture
def trainer(generations, sounds, activation):
    """With 64 windows at the first cut, 8 of them held out."""
    trained = Trainer(first_model(generations.graph, generations.newest), TrainConfig(batch=8), 6)
    for index, sound in enumerate(sounds):
        kept = torch.from_numpy(activation(sound, 1))
        trained.add(TrainingWindow("pi-1", "boot", index, 1, 1, kept, 0.5))
    return trained


@pytest.fixture
def rollout(state, generations, now):
    begun = Rollout(state.root / "rollout.json", RolloutConfig(), clock=lambda: now[0])
    begun.begin({1: generations.newest.bundle.digest})
    return begun


@pytest.fixture
def now():
    """The clock of gate and rollout, in seconds: `now[0]` may be set."""
    return [0.0]


@pytest.fixture
def release_gate(generations, trainer, state, sounds, signing_key, rollout, now):
    given = (
        generations.graph,
        generations,
        trainer,
        state,
        calibration(sounds),
        signing_key,
        ReleaseConfig(every_steps=3, least_s=0),
    )
    return ReleaseGate(*given, rollout, clock=lambda: now[0])


def set_weights(trainer, **changes):
    """Put weights into the average that would be released."""
    with torch.no_grad():
        for name, change in changes.items():
            parameter = trainer.averaged.get_parameter(name.replace("__", "."))
            parameter.copy_(change(parameter))


def test_it_is_due_after_so_many_steps_since_the_last_attempt(release_gate, trainer):
    due = []
    for _ in range(7):
        trainer.step()
        due.append(release_gate.due)
        if release_gate.due:
            release_gate.attempt()
    assert due == [False, False, True, False, False, True, False]
    assert len(release_gate.outcomes) == 2
    assert [outcome.steps for outcome in release_gate.outcomes] == [3, 6]


def test_it_is_due_after_so_much_time_if_anything_was_trained(release_gate, trainer, now):
    release_gate.config = ReleaseConfig(every_steps=1000, every_s=60.0, least_s=0)
    now[0] += 61
    assert not release_gate.due, "nothing is new"
    trainer.step()
    assert release_gate.due


def test_six_hours_at_least_lie_between_two_releases_also_over_a_restart(release_gate, trainer, rollout, state, now):
    release_gate.config = ReleaseConfig(every_steps=1)
    trainer.step()
    now[0] += 6 * 3600 - 1
    assert not release_gate.due, "the first generation is not six hours old"
    now[0] += 1
    assert release_gate.due
    release_gate.attempt()
    trainer.step()
    assert release_gate.due, "nothing was offered to devices yet"
    rollout.offer(2, "sha256:2")
    now[0] += 6 * 3600 - 1
    assert not release_gate.due
    again = Rollout(state.root / "rollout.json", RolloutConfig(), clock=lambda: now[0])
    assert again.released_within(6 * 3600)
    now[0] += 1
    assert not again.released_within(6 * 3600)
    assert release_gate.due


def test_nothing_is_due_while_the_rollout_stands_against_it(release_gate, trainer, rollout):
    for _ in range(3):
        trainer.step()
    rollout.pin(None)
    assert not release_gate.due
    rollout.unpin()
    assert release_gate.due


def test_after_a_rollback_it_goes_on_from_what_devices_run_under_a_new_number(
    release_gate, trainer, rollout, generations
):
    set_weights(trainer, head__weight=lambda w: w * 1.01)
    second = release_gate.attempt()
    rollout.offer(2, second.bundle.digest)
    rollout.roll_back(None)
    third = release_gate.attempt()
    assert third.number == 3
    assert release_gate.outcomes[-1].before == release_gate.outcomes[0].before, "judged against the second"
    assert generations.newest is third


def test_an_improvement_can_be_asked_for(release_gate, trainer):
    release_gate.config = ReleaseConfig(tolerance=-0.01)
    assert release_gate.attempt() is None, "the same weights"
    assert release_gate.outcomes[-1].reason == "held-out loss did not fall enough"


def test_no_worse_weights_become_the_next_generation(
    release_gate, trainer, generations, state, signing_key, sounds, small_bundle
):
    set_weights(trainer, head__weight=lambda w: w * 1.01)
    generation = release_gate.attempt()

    (outcome,) = release_gate.outcomes
    assert outcome.released
    assert outcome.after.loss <= outcome.before.loss * 1.02
    assert outcome.changed_blocks == (small_bundle.manifest.info.blocks[-1],), "only the head's block was changed"
    assert generations.newest is generation
    assert generation.number == 2
    # What devices will fetch: signed, the other blocks' files untouched, and the new weights' function.
    bundle = open_bundle(state.bundle_path(2), signing_key.public)
    assert bundle.digest == generation.bundle.digest
    assert bundle.manifest.info.calibration.source == "recordings", "not what its first compile was calibrated on"
    for block in small_bundle.manifest.info.blocks[:-1]:
        assert bundle.block_bytes(block, "onnx-fp32") == small_bundle.block_bytes(block, "onnx-fp32")
    expected = generation.complete(0, torch.from_numpy(sounds[:1])).numpy()[0]
    assert np.abs(Prefix(bundle).embed(sounds[0]) - expected).max() < 1e-4
    # A server that dies now starts with it.
    (last,) = ServerState(state.root).generations(1)
    assert last[0].digest == bundle.digest
    assert np.array_equal(last[1]["head.weight"], trainer.averaged_tensors()["head.weight"])


@pytest.mark.parametrize(
    ("ruin", "reason"),
    [
        # Everything in one place.
        ({"head__weight": torch.zeros_like, "head__bias": torch.ones_like}, "embeddings are collapsing"),
        ({"head__weight": lambda w: w * float("nan")}, "held-out loss rose"),
    ],
    ids=["collapsed", "nan"],
)
def test_worse_weights_are_not_released(release_gate, trainer, generations, state, ruin, reason):
    set_weights(trainer, **ruin)
    assert release_gate.attempt() is None
    outcome = release_gate.outcomes[-1]
    assert not outcome.released
    assert outcome.reason == reason
    assert generations.newest.number == 1
    assert state.generations(9) == []
    assert not state.bundle_path(2).exists()


@pytest.mark.parametrize("key", [b"one", b"two", b"three"])
def test_training_that_goes_wrong_is_not_released(generations, sounds, activation, state, signing_key, rollout, key):
    """Neighbours are drawn together and nothing keeps the rest apart: the loss falls, and the encoder collapses."""
    loss = HybridConfig(task=False, spread=None, lambda2=1.0)
    config = TrainConfig(batch=32, learning_rate=0.01, ema=0.0, loss=loss)
    trainer = Trainer(first_model(generations.graph, generations.newest), config, 6, key=key)
    kept = [torch.from_numpy(activation(sound, 1)) for sound in sounds]
    for device in range(3):
        for index in range(128):
            window = kept[(index + 13 * device) % len(kept)]
            trainer.add(TrainingWindow(f"pi-{device}", "boot", index, 1, 1, window, 0.5))
    release_gate = ReleaseGate(
        generations.graph, generations, trainer, state, calibration(sounds), signing_key, ReleaseConfig(), rollout
    )
    for _ in range(2):
        for _ in range(25):
            trainer.step()
        assert release_gate.attempt() is None
        outcome = release_gate.outcomes[-1]
        assert not outcome.released
        assert outcome.reason == "embeddings are collapsing"
        assert outcome.after.loss < outcome.before.loss
    assert generations.newest.number == 1
    assert not state.bundle_path(2).exists()


GOOD = Quality(loss=1.0, alignment=0.3, uniformity=-2.0, effective_rank=5.0, probe_accuracy=0.8, knn_accuracy=0.7)


@pytest.mark.parametrize(
    ("after", "objection"),
    [
        ({}, ""),
        ({"loss": 1.019}, ""),
        ({"loss": 1.03}, "held-out loss rose"),
        ({"loss": float("nan")}, "held-out loss rose"),
        ({"effective_rank": 3.1}, ""),
        ({"effective_rank": 2.9}, "embeddings are collapsing"),
        ({"alignment": 0.51, "uniformity": -1.79}, "held-out alignment and uniformity got worse"),
        ({"alignment": 0.49, "uniformity": -1.79}, ""),
        ({"alignment": 0.9, "uniformity": -2.0}, ""),
        ({"alignment": 0.1, "uniformity": -0.5}, ""),
        ({"alignment": 0.1, "uniformity": -0.1}, "embeddings are collapsing"),
        ({"alignment": 0.0, "uniformity": 0.0}, "embeddings are collapsing"),
        ({"uniformity": float("nan")}, "embeddings are collapsing"),
        ({"alignment": float("nan")}, "held-out alignment and uniformity got worse"),
        ({"probe_accuracy": 0.785}, ""),
        ({"probe_accuracy": 0.77}, "accuracy on the labelled recordings fell"),
        ({"knn_accuracy": 0.0}, ""),
    ],
)
def test_what_a_release_must_not_make_worse(release_gate, after, objection):
    assert release_gate.objection(GOOD, replace(GOOD, **after)) == objection


def test_recordings_with_labels_have_a_say(
    generations, trainer, state, sounds, signing_key, rollout, recordings, small_bundle
):
    probe = LinearProbe(recordings, small_bundle.manifest.info.front_end)
    lenient = ReleaseConfig(tolerance=100.0, least_rank=0.0, least_uniformity=0.0, geometry_tolerance=100.0)
    release_gate = ReleaseGate(
        generations.graph, generations, trainer, state, calibration(sounds), signing_key, lenient, rollout, probe=probe
    )
    set_weights(trainer, head__weight=torch.zeros_like)
    assert release_gate.attempt() is None
    outcome = release_gate.outcomes[-1]
    assert outcome.reason == "accuracy on the labelled recordings fell"
    assert outcome.before.probe_accuracy > outcome.after.probe_accuracy + 0.1
    set_weights(trainer, head__weight=lambda w: generations.newest.model.module.get_parameter("head.weight") * 1.01)
    assert release_gate.attempt().number == 2
    assert release_gate.outcomes[-1].before == outcome.before


def test_a_higher_loss_is_not_released(release_gate, trainer, generations):
    release_gate.config = ReleaseConfig(tolerance=-1.0)  # nothing is good enough
    set_weights(trainer, head__weight=lambda w: w * 1.01)
    assert release_gate.attempt() is None
    assert release_gate.outcomes[-1].reason == "held-out loss did not fall enough"
    assert generations.newest.number == 1


def test_nothing_is_released_unjudged(generations, state, sounds, signing_key, rollout):
    trainer = Trainer(first_model(generations.graph, generations.newest), TrainConfig(), 6)
    config = ReleaseConfig()
    release_gate = ReleaseGate(
        generations.graph, generations, trainer, state, calibration(sounds), signing_key, config, rollout
    )
    assert release_gate.attempt() is None
    assert release_gate.outcomes[0].reason == "too few held-out windows"


def test_a_release_whose_weights_cannot_be_kept_is_none_and_is_made_again(
    release_gate, trainer, generations, state, monkeypatch
):
    set_weights(trainer, head__weight=lambda w: w * 1.01)
    with monkeypatch.context() as patched:
        patched.setattr("runtime_server.state.server_state.write_checked", full_disk)
        with pytest.raises(OSError, match="No space"):
            release_gate.attempt()
    assert generations.newest.number == 1
    assert state.generations(9) == []
    assert release_gate.attempt().number == 2
    assert len(state.generations(9)) == 1


def full_disk(path, data):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ([0.0] * 9 + [5.0], ""),
        ([0.03] * 9 + [-0.9], "held-out loss rose"),
        ([-0.05] * 7 + [0.5] * 3, "held-out loss rose for too many devices"),
        ([-0.05] * 8 + [0.5] * 2, ""),
        ([0.0, 0.0, float("nan")], ""),
        ([float("nan")], "held-out loss rose"),
        ([0.0, 0.0, 3.0], ""),
        ([-0.5, 0.3], "held-out loss rose for too many devices"),
    ],
    ids=["veto", "praise", "a-share-is-worse", "few-are-worse", "nan", "alone-nan", "one-of-three", "one-of-two"],
)
def test_the_median_device_decides_and_a_share_of_them_can_refuse(release_gate, changes, objection):
    before = replace(GOOD, device_losses=tuple(2.0 for _ in changes))
    after = replace(GOOD, device_losses=tuple(2.0 * (1 + change) for change in changes))
    assert release_gate.objection(before, after) == objection
