import numpy as np
import scipy.special
import scipy.stats
import torch
from adapting import moved

from runtime_server.adaptation.methods import cema
from runtime_server.adaptation.methods.cema import Cema, student_loss, teacher_loss

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = (RANDOM.standard_normal((20, 5)) * 2 for _ in range(2))


def reliable(entropy):
    return np.exp(0.4 * np.log(5) - entropy)


def test_the_teachers_loss_is_the_published_one():
    entropy = scipy.stats.entropy(scipy.special.softmax(TEACHER, 1), axis=1)
    assert np.isclose(float(teacher_loss(torch.from_numpy(TEACHER))), np.mean(reliable(entropy) * entropy))


def test_the_students_loss_is_the_published_one():
    student, teacher = scipy.special.softmax(STUDENT, 1), scipy.special.softmax(TEACHER, 1)
    own, taught = scipy.stats.entropy(student, axis=1), scipy.stats.entropy(teacher, axis=1)
    distance = scipy.stats.entropy(teacher, student, axis=1)
    answers = -np.log(student[np.arange(20), teacher.argmax(1)])
    expected = (
        3 * np.mean(reliable(own) * own)
        + 3 * np.mean(reliable(taught) * distance)
        + np.mean(reliable(taught) * answers)
    )
    assert np.isclose(float(student_loss(torch.from_numpy(STUDENT), torch.from_numpy(TEACHER))), expected)


def test_the_teacher_is_taught_nothing_by_the_student():
    teacher, student = (torch.from_numpy(values).requires_grad_() for values in (TEACHER, STUDENT))
    student_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_the_student_learns_what_a_better_teacher_says(classifier, windows):
    student, teacher = classifier(), classifier()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in teacher.adaptable().values():
            value.add_(torch.randn(value.shape, generator=random))
        said = teacher(windows)

    def right():
        with torch.no_grad():
            return float((student(windows).argmax(1) == said.argmax(1)).float().mean())

    before, method = right(), Cema(student, teacher)
    assert before < 0.9
    for _ in range(30):
        method.update(windows)
    assert right() > before


def test_nothing_but_norms_moves_and_the_same_seed_gives_the_same(classifier, windows, monkeypatch):
    monkeypatch.setattr(cema, "LEAST_KEPT", 64)

    def adapted():
        student = classifier()
        method = Cema(student, classifier(), seed=3)
        for _ in range(6):
            method.update(windows)
        return student

    begun, one = classifier(), adapted()
    assert moved(one, adapted()) == set(), "the same seed gives the same"
    assert set() < moved(begun, one) <= set(begun.adaptable()), "norms moved, and nothing else"
