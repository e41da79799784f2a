"""No release lowers the score of a head that devices use, on the clips that the head was fitted to."""

import logging

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from runtime_edge.errors import FormatError
from runtime_edge.formats.model_id import model_digest
from runtime_edge.formats.records.head import Head
from runtime_server.labels.head_clips import HeadClips, HeadClipsFolder, head_name
from runtime_server.labels.head_training import fit_head
from runtime_server.labels.labelled import of_clips, read_clips
from runtime_server.releases.head_judge import HeadJudge, HeadScore
from runtime_server.releases.release_gate import ReleaseConfig, ReleaseGate, first_model
from runtime_server.releases.rollout import Rollout, RolloutConfig
from runtime_server.state.server_state import ServerState
from runtime_server.training.buffer import TrainingWindow
from runtime_server.training.trainer import TrainConfig, Trainer
from streamsplit_compile.bundle.calibrate import calibration_set_for

pytestmark = pytest.mark.integration
LENIENT = ReleaseConfig(tolerance=100.0, least_rank=0.0, least_uniformity=0.0, geometry_tolerance=100.0)


@pytest.fixture
def state(tmp_path):
    return ServerState(tmp_path / "server")


@pytest.fixture
def head(recordings, small_bundle):
    return fit_head(of_clips(read_clips(recordings), small_bundle), small_bundle.manifest.info.encoder.id, "test")


@pytest.fixture
def kept(state, head, recordings, small_bundle):
    clips = HeadClips.of(head, read_clips(recordings), small_bundle.manifest.info.front_end, -60.0)
    HeadClipsFolder(state.head_clips).keep(clips)
    return clips


@pytest.fixture
def judge(state):
    return HeadJudge(HeadClipsFolder(state.head_clips))


@pytest.fixture
def deaf(generations):
    """Weights whose embeddings are all the same."""
    model = first_model(generations.graph, generations.newest)
    with torch.no_grad():
        model.module.get_parameter("head.weight").zero_()
    return model


@pytest.fixture
def gate(generations, state, sounds, activation, signing_key):
    """A gate at which only heads object, its trainer and its rollout."""
    trainer = Trainer(first_model(generations.graph, generations.newest), TrainConfig(batch=8), 6)
    for index, sound in enumerate(sounds):
        trainer.add(TrainingWindow("pi-1", "boot", index, 1, 1, torch.from_numpy(activation(sound, 1)), 0.5))
    rollout = Rollout(state.root / "rollout.json", RolloutConfig())
    rollout.begin({1: generations.newest.bundle.digest})
    windows = calibration_set_for(generations.newest.bundle.manifest.info, None)
    gate = ReleaseGate(generations.graph, generations, trainer, state, windows, signing_key, LENIENT, rollout)
    return gate, trainer, rollout


def average(trainer, change):
    with torch.no_grad():
        parameter = trainer.averaged.get_parameter("head.weight")
        parameter.copy_(change(parameter))


def test_a_release_that_lowers_a_heads_score_is_refused_with_the_numbers(gate, head, kept, generations, state, caplog):
    gate, trainer, _ = gate
    right = int(kept.right(generations.newest.model).sum())
    assert right > 6
    average(trainer, torch.zeros_like)
    with caplog.at_level(logging.WARNING):
        assert gate.attempt(lambda: {"rpi4": head}) is None
        assert gate.attempt(lambda: {"rpi4": head}) is None
    assert generations.newest.number == 1
    assert not state.bundle_path(2).exists()
    outcome = gate.outcomes[-1]
    assert not outcome.released
    (score,) = outcome.heads.judged
    assert (score.head, score.clips, score.before) == ("rpi4", 12, right)
    assert score.after <= 6
    assert score.at_95 < 0
    assert outcome.reason == str(score)
    assert outcome.reason.startswith(f"head rpi4 would go from {right} to {score.after} of its 12 clips (95 %: down")
    assert gate.counts == {"a pushed head got worse": 2}
    assert [record.getMessage() for record in caplog.records] == [f"generation 2 is not released: {outcome.reason}"]

    average(trainer, lambda _: generations.newest.model.module.get_parameter("head.weight") * 1.01)
    assert gate.attempt(lambda: {"rpi4": head}).number == 2
    (score,) = gate.outcomes[-1].heads.judged
    assert (score.before, score.after) == (right, right)


def test_many_small_steps_do_not_lower_it_either(gate, head, kept, generations):
    gate, trainer, rollout = gate
    right = kept.right(generations.newest.model).sum()
    first = generations.newest.model.module.get_parameter("head.weight").clone()
    flat = first.mean(dim=0, keepdim=True).expand_as(first)
    for share in (0.01, 0.5, 0.9, 1.0):
        average(trainer, torch.lerp(first, flat, share).expand_as)
        released = gate.attempt(lambda: {"rpi4": head})
        if released is not None:
            rollout.offer(released.number, released.bundle.digest)
    assert kept.right(generations.get(rollout.base).model).sum() >= right
    assert {outcome.released for outcome in gate.outcomes} == {False, True}, "the test tells nothing otherwise"


def test_without_a_pushed_head_nothing_is_asked(gate, kept):
    gate, trainer, _ = gate
    average(trainer, torch.zeros_like)
    assert gate.attempt(dict).number == 2


def test_each_pushed_head_is_a_probe_of_its_own(judge, head, kept, state, generations, deaf):
    few = HeadClips(head=replace(head, created_by="x").to_json(), clips=kept.clips[:1], places=[0] * 2,
                    windows=kept.samples[:2].astype("<f2").tobytes())  # fmt: skip
    HeadClipsFolder(state.head_clips).keep(few)
    scores = judge.judge({"rpi4 of pi-1": Head.from_json(few.head, "x"), "m2": head}, generations.newest, deaf)
    assert [(score.head, score.clips) for score in scores.judged] == [("m2", 12), ("rpi4 of pi-1", 1)]
    assert scores.objection.startswith("head m2 would go from ")


def test_a_release_brings_the_heads_that_fit_it_and_the_best_so_far_is_remembered(gate, head, kept, state, generations):
    gate, trainer, rollout = gate
    weight = generations.newest.model.module.get_parameter("head.weight").clone()
    used, folder = {"rpi4": head, "m2": head}, HeadClipsFolder(state.head_clips)
    for place, rate in enumerate((1.01, -1.0)):
        average(trainer, lambda _, rate=rate: weight * rate)
        released = gate.attempt(lambda used=used: used)
        assert released.number == place + 2, "a head that is fitted anew does not mind that embeddings turn"
        rollout.offer(released.number, released.bundle.digest)
        given = gate.heads.refit(used, released)
        assert given.keys() == {"rpi4", "m2"}
        used = {**used, **given}
        assert gate.heads.refit(used, released) == {}, "they are of this generation already"
        gate.heads.forget(used)
        fitted = used["rpi4"]
        assert fitted == used["m2"]
        assert fitted.generations == (released.number, released.number)
        assert fitted.model == model_digest(released.bundle.manifest)
        known = folder.read(fitted)
        assert known.windows == kept.windows
        assert sum(known.best) == kept.right(generations.newest.model).sum()
        assert known.best_generation == released.number
    assert len(list(state.head_clips.glob("*.clips"))) == 1
    turned = np.dot(*(np.frombuffer(one.weights, "<f4") for one in (head, used["rpi4"])))
    assert turned < 0


def test_more_heads_than_may_be_pushed_are_fitted_and_a_damaged_one_alone_is_left_out(
    gate, head, kept, state, generations, monkeypatch, caplog
):
    monkeypatch.setattr("runtime_server.labels.head_clips.MAX_HEADS", 3)
    gate, trainer, _ = gate
    pushed, folder = {}, HeadClipsFolder(state.head_clips)
    for place in range(3):
        own = replace(head, created_by=f"head {place}")
        folder.keep(replace(kept, head=own.to_json()), bounded=False)
        pushed[f"rpi4 of pi-{place}"] = own
    average(trainer, lambda parameter: -parameter)
    released = gate.attempt(lambda: pushed)
    damaged = next(
        path for path in state.head_clips.glob("*.clips") if head_name(pushed["rpi4 of pi-0"].to_json()) in path.name
    )
    damaged.write_bytes(b"x")
    given = gate.heads.refit(pushed, released)
    assert given.keys() == {"rpi4 of pi-1", "rpi4 of pi-2"}
    assert "a head is not fitted to generation 2" in caplog.text


def test_what_was_lost_in_small_steps_is_lost_against_the_best(judge, head, kept, state, generations, deaf):
    right = kept.right(deaf)
    HeadClipsFolder(state.head_clips).keep(replace(kept, best=b"\1" * 12, best_generation=1))
    scores = judge.judge({"rpi4": head}, generations.newest, deaf)
    assert (scores.judged[0].before, scores.judged[0].after) == (12, right.sum())
    assert scores.objection


@pytest.mark.parametrize(
    ("clips", "before", "after", "at_95", "worse"),
    [(400, 380, 377, -1.9, False), (400, 380, 375, -1.9, True), (400, 380, 381, -2.1, True), (12, 10, 10, 0.0, False)],
)
def test_a_point_on_average_or_two_at_the_lower_end_are_too_many(clips, before, after, at_95, worse):
    assert HeadScore("rpi4", clips, before, after, at_95).worse == worse


def test_a_head_from_another_machine_judges_nothing_and_that_is_said_once(judge, head, generations, deaf, caplog):
    foreign = replace(head, encoder="another")
    for _ in range(2):
        scores = judge.judge({"rpi4": head, "m2": foreign}, generations.newest, deaf)
    assert scores.judged == ()
    assert scores.without_clips == ("rpi4",), "devices refuse one of another encoder"
    assert scores.objection == ""
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("no release is judged by head rpi4: it was pushed without its clips; push it again with")


def test_damaged_clips_release_nothing(gate, head, kept, state):
    gate, trainer, _ = gate
    average(trainer, torch.zeros_like)
    (path,) = state.head_clips.glob("*.clips")
    path.write_bytes(b"x")
    with pytest.raises(FormatError, match="is damaged"):
        gate.attempt(lambda: {"rpi4": head})
    assert not state.bundle_path(2).exists()
