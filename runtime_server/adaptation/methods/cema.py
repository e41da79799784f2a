"""CEMA: a larger teacher adapts along and tells the small encoder what it hears (arXiv 2402.17316)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.entropies import entropies, reliability
from runtime_server.adaptation.methods.adaptation_method import BATCH, LEARNING_RATE, MOMENTUM

TEACHER_LEARNING_RATE = 2.5e-4
REPLAYED = 3 * BATCH
"""Earlier windows in each step of the student."""
MAX_KEPT, LEAST_KEPT = 10_000, 256
"""Windows that are kept for replaying, and from how many on they are replayed."""
ALPHA = BETA = 3.0
"""Weights of the student's own entropy, and of its distance from the teacher."""


def teacher_loss(logits: Tensor) -> Tensor:
    """`mean(exp(E_max - H) H)` of the teacher's logits (n, labels)."""
    entropy = entropies(logits)
    return (reliability(entropy, logits.shape[1]) * entropy).mean()


def student_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's loss, of logits (n, labels) of both; no gradient flows into the teacher.

    `3 mean(w H(p_s)) + 3 mean(w_t KL(p_t || p_s)) + mean(w_t CE(p_s, argmax p_t))` with `w = exp(E_max - H)` of each.
    """
    teacher, labels = teacher.detach(), student.shape[1]
    own, taught = entropies(student), reliability(entropies(teacher), labels)
    logs = torch.log_softmax(student, dim=1)
    distance = functional.kl_div(logs, torch.log_softmax(teacher, dim=1), reduction="none", log_target=True).sum(1)
    answers = functional.nll_loss(logs, teacher.argmax(1), reduction="none")
    return ALPHA * (reliability(own, labels) * own).mean() + (taught * (BETA * distance + answers)).mean()


class Cema:
    """Teacher and student, and the windows that are replayed."""

    def __init__(
        self, student: Classifier, teacher: Classifier, seed: int = 0, learning_rate: float = LEARNING_RATE
    ) -> None:
        self._student, self._teacher = student, teacher
        self._steps = torch.optim.SGD(student.adaptable().values(), lr=learning_rate, momentum=MOMENTUM)
        self._teachers = torch.optim.SGD(teacher.adaptable().values(), lr=TEACHER_LEARNING_RATE)
        self._kept: list[Tensor] = []
        self._random = torch.Generator().manual_seed(seed)

    def update(self, windows: Tensor) -> None:
        """See the interface."""
        self._teachers.zero_grad()
        teacher_loss(self._teacher(windows)).backward()  # type: ignore[no-untyped-call]
        self._teachers.step()
        seen = windows
        if len(self._kept) >= LEAST_KEPT:
            places = torch.randperm(len(self._kept), generator=self._random)[:REPLAYED]
            seen = torch.cat([windows, torch.stack([self._kept[place] for place in places]).float()])
        self._kept = [*self._kept, *windows.half()][-MAX_KEPT:]
        with torch.no_grad():
            taught = self._teacher(seen)
        self._steps.zero_grad()
        student_loss(self._student(seen), taught).backward()  # type: ignore[no-untyped-call]
        self._steps.step()
