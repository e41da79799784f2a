"""What may not be sent: less agreement with the larger encoder, forgotten labels, one label for everything."""

import msgspec
import numpy as np
import pytest
import torch
from toys import Tiny

from runtime_server.adaptation.adaptation_judge import AdaptationJudge, LabelledWindows
from runtime_server.suffix.generations import cut_model


@pytest.fixture
def weights(taught, tiny_encoder):
    """`weights(seed)`: those of another Tiny, cut in the same way; `constant`: it hears no difference."""

    def made(tensors):
        return cut_model(tiny_encoder.graph, taught.newest.bundle, tensors)

    def of(seed=0, constant=False):
        tensors = {name: value.numpy() for name, value in Tiny(seed).state_dict().items()}
        tensors["head.weight"] = tensors["head.weight"] * (0 if constant else 1)
        return made(tensors)

    return of


@pytest.fixture
def answers(recipient):
    """What a head says of the embeddings of Tiny, in plain torch."""

    def of(encoder, windows):
        with torch.no_grad():
            return recipient.head.scores(encoder(windows).numpy()).argmax(1)

    return of


def test_agreement_with_the_larger_encoder_must_not_fall(taught, recipient, weights, windows, answers):
    larger, generation = taught.newest.larger, taught.newest
    with torch.no_grad():
        told = recipient.head.scores(larger.mapped(larger.larger(windows)).numpy()).argmax(1)
    before = int((answers(Tiny(), windows) == told).sum())
    judge = AdaptationJudge(recipient.head, generation.model, larger, None)
    assert judge.objection(generation.model, windows) == ""
    objections = {}
    for seed in range(1, 6):
        gone = before - int((answers(Tiny(seed), windows) == told).sum())
        objections[gone] = judge.objection(weights(seed), windows)
    assert max(objections) > 1, "some of them are worse"
    for gone, objection in objections.items():
        assert (objection == "") == (gone <= 1), "of 32 windows, one may be lost"
        assert not objection or f"on {gone} of 32 windows fewer" in objection


def test_known_sounds_must_not_be_forgotten(adaptable, recipient, weights, windows, answers):
    truth = answers(Tiny(), windows)
    judge = AdaptationJudge(recipient.head, adaptable.newest.model, None, LabelledWindows(windows.numpy(), truth))
    assert judge.objection(weights(0), windows) == ""
    right = int((answers(Tiny(3), windows) == truth).sum())
    assert right < 30
    # Two windows of the device are too few for the other criterion.
    assert judge.objection(weights(3), windows[:2]) == f"labels {right} of 32 known windows correctly, 32 before"


def test_without_a_larger_encoder_one_label_for_everything_is_noticed(adaptable, recipient, weights, windows, answers):
    usual = int(np.bincount(answers(Tiny(), windows)).max())
    judge = AdaptationJudge(recipient.head, adaptable.newest.model, None, None)
    assert judge.objection(weights(0), windows) == ""
    expected = f"gives one label to 32 of 32 windows, to {usual} before"
    assert judge.objection(weights(0, constant=True), windows) == expected


def test_what_is_not_finite_is_never_sent(adaptable, recipient, tiny_encoder, windows):
    tensors = dict(tiny_encoder.tensors) | {"stem.1.weight": np.full(8, np.nan, np.float32)}
    broken = cut_model(tiny_encoder.graph, adaptable.newest.bundle, tensors)
    judge = AdaptationJudge(recipient.head, adaptable.newest.model, None, None)
    assert judge.objection(broken, windows) == "its embeddings are not finite"


def test_a_temperature_changes_no_answer(adaptable, recipient, weights, windows):
    hot = msgspec.structs.replace(recipient.head, temperature=50.0)
    objections = {
        AdaptationJudge(head, adaptable.newest.model, None, None).objection(weights(0, constant=True), windows)
        for head in (recipient.head, hot)
    }
    assert len(objections) == 1
