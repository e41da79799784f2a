"""L_task with labels: cross-entropy on a linear head (docs/method.md, section 5)."""

from __future__ import annotations

from torch import Tensor, nn

UNLABELLED = -1


class LinearHead(nn.Linear):
    """Embedding [n, d] -> class scores [n, classes]."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)


def classification_loss(head: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of `head(embeddings)` on int64[n] `labels`; windows labelled -1 do not count.

    0, with a gradient of 0, when no window has a label.
    """
    scores = head(embeddings)
    total = nn.functional.cross_entropy(scores, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp_min(1)
