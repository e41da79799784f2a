"""Joint: the teacher and the unadapted encoder teach together, and clean sound is not forgotten.

Three things differ from CEMA (`cema`). The taught scores of a window are the product of the teacher's and the unadapted
student's, scaled to a sum of one, because the two err on different windows. Both sides of the distance are weighted by
how often each label was heard, so that the student does not learn that: an hour's windows may all be of one label. And
each step replays clean recordings, which the student should answer as it did before.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.methods.adaptation_method import BATCH, MOMENTUM

LEARNING_RATE = 1e-2
MAX_STEPS = 4
"""Steps after each batch; at first one for each batch that is kept, because a few windows say little."""
REPLAYED = 2 * BATCH
"""Kept windows in each step, beside a batch of clean ones."""
MAX_KEPT = 10_000
LEAST_SHARE = 1e-4
"""Counted for a label that was never heard."""


def distance(wanted: Tensor, found: Tensor) -> Tensor:
    """Mean of `KL(softmax(wanted) || softmax(found))` over logits (n, labels); no gradient flows into `wanted`."""
    wanted = torch.log_softmax(wanted.detach(), dim=1)
    return functional.kl_div(torch.log_softmax(found, dim=1), wanted, reduction="batchmean", log_target=True)


def heard_shares(taught: Tensor) -> Tensor:
    """Logs (labels,) of how often each label was heard, by the taught logits (n, labels) of all windows."""
    return taught.softmax(1).mean(0).clamp_min(LEAST_SHARE).log()


class Joint:
    """Teacher and student, and the windows that are replayed.

    Args:
        student: is adapted.
        teacher: stays as it is.
        clean: windows (n, samples) float32 without what devices hear now, such as those that the head was fitted to.
        seed: of what is replayed.
    """

    def __init__(self, student: Classifier, teacher: Classifier, clean: Tensor, seed: int = 0) -> None:
        self._student, self._teacher = student, teacher
        self._begun = {f"encoder.{name}": value.detach().clone() for name, value in student.adaptable().items()}
        self._optimiser = torch.optim.SGD(student.adaptable().values(), lr=LEARNING_RATE, momentum=MOMENTUM)
        self._clean = clean
        self._kept: list[tuple[Tensor, Tensor]] = []
        """Windows (samples,) float16 and the logits (labels,) that they are taught with."""
        self._random = torch.Generator().manual_seed(seed)

    def update(self, windows: Tensor) -> None:
        """See the interface."""
        with torch.no_grad():
            taught = self._teacher(windows) + self._unadapted(windows)
        self._kept = [*self._kept, *zip(windows.half(), taught, strict=True)][-MAX_KEPT:]
        shares = heard_shares(torch.stack([taught for _, taught in self._kept]))
        for _ in range(min(MAX_STEPS, len(self._kept) // BATCH)):
            self._step(shares)

    def _step(self, shares: Tensor) -> None:
        places = torch.randperm(len(self._kept), generator=self._random)[:REPLAYED]
        seen, taught = (torch.stack([self._kept[place][part] for place in places]) for part in (0, 1))
        clean = self._clean[torch.randint(len(self._clean), (BATCH,), generator=self._random)]
        with torch.no_grad():
            known = self._unadapted(clean)
        found = self._student(torch.cat([seen.float(), clean]))
        answers, still = found[: len(seen)], found[len(seen) :]
        loss = distance(taught + shares, answers + shares) + distance(known, still)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def _unadapted(self, windows: Tensor) -> Tensor:
        """The student's logits (n, labels) as they were before the first step."""
        return functional_call(self._student, self._begun, (windows,))  # type: ignore[no-any-return]
