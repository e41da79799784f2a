import numpy as np
import scipy.special
import scipy.stats
import torch
from adapting import moved

from runtime_server.adaptation.methods import joint
from runtime_server.adaptation.methods.joint import Joint, distance, heard_shares

RANDOM = np.random.default_rng(0)
WANTED, FOUND = (RANDOM.standard_normal((20, 5)) * 2 for _ in range(2))


def softmax(logits):
    return scipy.special.softmax(np.asarray(logits, np.float64), 1)


def logits_of(classifier, windows):
    with torch.no_grad():
        return classifier(windows).double().numpy()


def values(classifier):
    return {name: value.detach().clone() for name, value in classifier.adaptable().items()}


def shaken(classifier, by=1.0):
    """A classifier with other answers."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in classifier.adaptable().values():
            value.add_(by * torch.randn(value.shape, generator=random))
    return classifier


def test_the_distance_is_that_from_what_is_wanted():
    wanted, found = (torch.from_numpy(logits).requires_grad_() for logits in (WANTED, FOUND))
    value = distance(wanted, found)
    assert np.isclose(float(value.detach()), np.mean(scipy.stats.entropy(softmax(WANTED), softmax(FOUND), axis=1)))
    value.backward()
    assert wanted.grad is None
    assert found.grad.abs().sum() > 0


def test_the_shares_are_those_of_the_taught_scores():
    taught = np.concatenate([WANTED[:, :4], np.full((20, 1), -100.0)], 1)
    expected = np.log(np.maximum(softmax(taught).mean(0), joint.LEAST_SHARE))
    assert np.allclose(heard_shares(torch.from_numpy(taught)), expected)
    assert np.isclose(expected[-1], np.log(joint.LEAST_SHARE))


def test_a_step_is_downhill_on_the_two_distances_alone(classifier, windows, monkeypatch):
    """The first step of the parameters, against numerical slopes of a loss that is computed here."""
    monkeypatch.setattr(joint, "MAX_STEPS", 1)
    heard, clean = windows, windows[:1] * 0.3  # one clean window, so that it does not matter which are drawn
    student, teacher = classifier(), shaken(classifier(), 0.3)
    begun = values(student)
    taught = logits_of(teacher, heard) + logits_of(student, heard)
    shares = softmax(taught).mean(0)
    known = softmax(logits_of(student, clean))

    def loss():
        one, other = softmax(taught) * shares, softmax(logits_of(student, heard)) * shares
        still = softmax(logits_of(student, clean))
        return (
            scipy.stats.entropy(one / one.sum(1, keepdims=True), other / other.sum(1, keepdims=True), axis=1).mean()
            + scipy.stats.entropy(known, still, axis=1).mean()
        )

    random, slopes = torch.Generator().manual_seed(1), []
    along = {name: torch.randn(value.shape, generator=random) for name, value in begun.items()}
    for sign in (1e-3, -1e-3):
        with torch.no_grad():
            for name, value in student.adaptable().items():
                value.copy_(begun[name] + sign * along[name])
        slopes.append(loss())
    with torch.no_grad():
        for name, value in student.adaptable().items():
            value.copy_(begun[name])
    Joint(student, teacher, clean).update(heard)
    moved = sum(
        float(((value.detach() - begun[name]) * along[name]).sum()) for name, value in student.adaptable().items()
    )
    assert np.isclose(moved, -joint.LEARNING_RATE * (slopes[0] - slopes[1]) / 2e-3, rtol=0.02)


def test_the_student_learns_what_a_better_teacher_says_and_keeps_what_it_knew(classifier, windows, monkeypatch):
    monkeypatch.setattr(joint, "LEARNING_RATE", 1e-3)
    student, teacher = classifier(), shaken(classifier())
    clean = torch.from_numpy(np.random.default_rng(2).standard_normal((32, 1024)).astype(np.float32)) * 0.1
    taught = (logits_of(teacher, windows) + logits_of(student, windows)).argmax(1)
    known, before = softmax(logits_of(student, clean)), np.mean(logits_of(student, windows).argmax(1) == taught)
    assert before < 0.9

    def adapted(clean):
        changed = classifier()
        method = Joint(changed, teacher, clean)
        for _ in range(12):
            method.update(windows)
        return changed

    holding = adapted(clean)
    assert np.mean(logits_of(holding, windows).argmax(1) == taught) > before

    def forgotten(changed):
        return scipy.stats.entropy(known, softmax(logits_of(changed, clean)), axis=1).mean()

    assert forgotten(holding) < forgotten(adapted(windows))


def test_one_label_all_day_teaches_nothing_about_how_often_labels_occur():
    """Each label's share is on both sides, so what is surely one label leaves no slope towards it."""
    taught = torch.tensor([[20.0, 0.0, 0.0]]).repeat(32, 1)
    found = torch.tensor([[0.5, 0.0, 0.0]]).repeat(32, 1).requires_grad_()
    shares = heard_shares(taught)
    distance(taught + shares, found + shares).backward()
    adjusted = found.grad.abs().sum()
    found.grad = None
    distance(taught, found).backward()
    assert adjusted < 0.01 * found.grad.abs().sum()


def test_nothing_but_norms_moves_and_the_same_seed_gives_the_same(classifier, windows):
    def adapted():
        student, teacher = classifier(), shaken(classifier())
        begun = values(teacher)
        method = Joint(student, teacher, windows, seed=3)
        for _ in range(4):
            method.update(windows)
        assert all(torch.equal(begun[name], value) for name, value in values(teacher).items())
        return student

    begun, one = classifier(), adapted()
    assert moved(one, adapted()) == set(), "the same seed gives the same"
    assert set() < moved(begun, one) <= set(begun.adaptable()), "norms moved, and nothing else"
