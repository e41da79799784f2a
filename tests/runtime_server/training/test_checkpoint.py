"""Checkpoint files: written whole, refused with one line, and no code in them is ever run.

That a resumed training is the uninterrupted one is shown in test_replay, with the stream it needs.
"""

import json
import logging
import os
from dataclasses import replace

import pytest
import torch

from runtime_edge.base.checked_files import checksum_path
from runtime_edge.errors import FormatError, UsageError
from runtime_server.releases.release_gate import first_model
from runtime_server.training.buffer import TrainingWindow
from runtime_server.training.checkpoint import Checkpoints, resumed
from runtime_server.training.losses import LOSSES
from runtime_server.training.losses.objectives import OBJECTIVES
from runtime_server.training.trainer import TrainConfig, Trainer

pytestmark = pytest.mark.integration


@pytest.fixture
def trainer_of(generations):
    def make(**config):
        model = first_model(generations.graph, generations.newest)
        return Trainer(model, TrainConfig(**{"batch": 8, "min_windows": 8, **config}), 6)

    return make


@pytest.fixture
def windows(sounds, activation):
    return [
        TrainingWindow("pi-1", "b", index, 1, 1, torch.from_numpy(activation(sound, 1)), 0.5, sequence=index + 1)
        for index, sound in enumerate(sounds[:32])
    ]


@pytest.fixture
def train(trainer_of, windows):
    """`train(**config)`: a trainer of three steps."""

    def run(**config):
        trainer = trainer_of(**config)
        for window in windows:
            trainer.add(window)
        for _ in range(3):
            trainer.step()
        return trainer

    return run


@pytest.fixture
def trained(train):
    return train()


@pytest.fixture
def checkpoints(tmp_path, trained):
    kept = Checkpoints(tmp_path / "trainer" / "checkpoint.pt", "tiny")
    kept.save(trained)
    return kept


def test_there_is_nothing_to_go_on_from_at_first(trainer_of, tmp_path):
    trainer = resumed(trainer_of, Checkpoints(tmp_path / "no.pt", "tiny"))
    assert trainer.steps == 0


def test_a_new_trainer_goes_on_where_the_last_one_stood(checkpoints, trainer_of, trained):
    again = Checkpoints(checkpoints.path, "tiny")
    trainer = resumed(trainer_of, again)
    assert trainer.steps == again.saved == checkpoints.saved == 3
    assert trainer.to_reread == set(range(1, 33))
    assert not trainer.ready, "its windows are still to be read"
    expected, found = trained.model.module.state_dict(), trainer.model.module.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_new_settings_are_said_and_hold(checkpoints, trainer_of, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = resumed(lambda: trainer_of(learning_rate=0.5, ema=0.1), checkpoints)
    assert trainer.steps == 3
    assert trainer.optimizer.param_groups[0]["lr"] == 0.5
    said = [record.message.rpartition(": ")[2] for record in caplog.records]
    assert said == ["learning_rate 0.0001 -> 0.5", "ema 0.97 -> 0.1"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_goes_on_to_the_bit(train, trainer_of, windows, tmp_path, objective, caplog):
    checkpoints, whole = Checkpoints(tmp_path / "checkpoint.pt", "tiny"), train(objective=objective)
    checkpoints.save(whole)
    again = resumed(lambda: trainer_of(objective=objective), checkpoints)
    assert not caplog.records
    assert again.fingerprint() == whole.fingerprint()
    for window in windows:
        again.restore(window)
    assert [again.step().losses for _ in range(3)] == [whole.step().losses for _ in range(3)]
    assert again.fingerprint() == whole.fingerprint()
    expected, found = whole.optimizer.state_dict()["state"], again.optimizer.state_dict()["state"]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[place]["exp_avg"], found[place]["exp_avg"]) for place in expected)


def test_another_objective_is_one_error_and_the_checkpoint_stays(checkpoints, trainer_of):
    before = checkpoints.path.read_bytes()
    with pytest.raises(UsageError) as caught:
        resumed(lambda: trainer_of(objective="moco"), checkpoints)
    assert str(caught.value) == (
        f"{checkpoints.path}: was trained with --objective neighbours, not moco; give --objective "
        f"neighbours, or remove {checkpoints.path.parent} to train anew from the released weights"
    )
    assert checkpoints.path.read_bytes() == before


def test_a_checkpoint_from_before_there_was_a_choice_goes_on_with_the_default_of_now(
    checkpoints, trainer_of, trained, caplog
):
    document = torch.load(checkpoints.path, weights_only=True)
    del document["objective"], document["objective_state"]
    settings = json.loads(document["config"])
    del settings["objective"]
    torch.save({**document, "config": json.dumps(settings)}, checkpoints.path)
    checksum_path(checkpoints.path).unlink()
    trainer = resumed(trainer_of, checkpoints)
    assert (trainer.steps, trainer.fingerprint()) == (3, trained.fingerprint())
    assert "objective virtual-negatives -> neighbours" in caplog.text
    with pytest.raises(UsageError, match="give --objective virtual-negatives"):
        resumed(lambda: trainer_of(objective="simsiam"), checkpoints)


def test_objectives_without_a_state_of_their_own_are_a_setting_like_others(checkpoints, trainer_of, trained, caplog):
    trainer = resumed(lambda: trainer_of(objective="simclr"), checkpoints)
    assert (trainer.steps, trainer.fingerprint()) == (3, trained.fingerprint())
    assert "objective neighbours -> simclr" in caplog.text


def test_another_spread_term_is_said_and_holds(checkpoints, trainer_of, caplog):
    trainer = resumed(lambda: trainer_of(loss=replace(LOSSES["hybrid"], spread="kl")), checkpoints)
    assert trainer.steps == 3
    assert "'spread': None" in caplog.text
    assert "'spread': 'kl'" in caplog.text


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


def _truncate(path, trained):
    path.write_bytes(path.read_bytes()[:-200])


def _flip(path, trained):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)


def _other_file(path, trained):
    torch.save({"weights": torch.zeros(3)}, path)


def _no_code(path, trained):
    torch.save({"format": "streamsplit.trainer/1", "encoder": Malice()}, path)


def _too_large(path, trained):
    with path.open("ab") as file:
        file.truncate(1 << 30)


def _part_missing(path, trained):
    document = torch.load(path, weights_only=True)
    del document["optimizer"]
    torch.save(document, path)


def _other_shapes(path, trained):
    document = torch.load(path, weights_only=True)
    document["weights"]["head.weight"] = torch.zeros(5, 12)
    torch.save(document, path)


@pytest.mark.parametrize(
    ("ruin", "said"),
    [
        (_truncate, "cannot be resumed"),
        (_flip, "cannot be resumed"),
        (_other_file, "not a streamsplit.trainer/1 file"),
        (_no_code, "cannot be resumed"),
        (_too_large, "too many for a trainer"),
        (_part_missing, "cannot be resumed"),
        (_other_shapes, "size mismatch for head.weight"),
    ],
)
def test_a_file_that_cannot_be_resumed_is_set_aside_and_training_starts_anew(
    checkpoints, trainer_of, trained, ruin, said, caplog, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ruin(checkpoints.path, trained)
    checksum_path(checkpoints.path).unlink()  # an earlier version wrote none
    with pytest.raises(FormatError, match=said) as caught:
        checkpoints.load(trainer_of())
    assert str(checkpoints.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        trainer = resumed(trainer_of, checkpoints)
    assert trainer.steps == 0
    assert not trainer.to_reread
    fresh = trainer_of().model.module.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in trainer.model.module.state_dict().items())
    assert sorted(path.name for path in checkpoints.path.parent.iterdir()) == ["checkpoint.pt.unusable"]
    assert "training restarts" in caplog.text
    assert not (tmp_path / "malice").exists()


@pytest.mark.parametrize("bit", [3, -7, 50_001, 90_002, None])
def test_a_changed_bit_or_a_file_that_is_gone_is_noticed(checkpoints, trainer_of, bit, caplog):
    data = bytearray(checkpoints.path.read_bytes())
    if bit is None:
        checkpoints.path.unlink()
    else:
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        checkpoints.path.write_bytes(data)
    trainer = resumed(trainer_of, checkpoints)
    assert trainer.steps == 0
    assert f"checkpoint.pt: is {'missing' if bit is None else 'damaged'}" in caplog.text
    assert "training restarts" in caplog.text
    checkpoints.save(trainer)
    assert checkpoints.load(trainer_of())


def test_a_checkpoint_of_another_encoder_is_refused(checkpoints, trainer_of):
    with pytest.raises(FormatError, match="training of encoder tiny, this one is other"):
        Checkpoints(checkpoints.path, "other").load(trainer_of())


def test_a_full_disk_leaves_the_last_one(checkpoints, trained, monkeypatch):
    before = checkpoints.path.read_bytes()
    trained.step()

    def full(document, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime_server.training.checkpoint.torch.save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(trained)
    assert checkpoints.path.read_bytes() == before
    assert sorted(checkpoints.path.parent.iterdir()) == [checkpoints.path, checksum_path(checkpoints.path)]
    assert checkpoints.saved == 3
