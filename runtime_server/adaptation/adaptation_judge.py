"""Decides whether an adaptation may be sent: it must not be worse than the compiled weights.

Both are asked about windows of the device that never train, where they should agree with the larger encoder as it was
before it adapted along, and about windows with known labels, if there are any. Without a larger encoder, an adaptation
that gives one label to nearly everything is recognised instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime_edge.formats.records.head import Head
from runtime_server.suffix.generations import CutModel
from runtime_server.suffix.larger_encoder import AlignedEncoder, in_batches
from streamsplit_compile.encoder.segment import run_segments

MOST_DISAGREEING = 0.05
"""Share of the device's windows by which the agreement with the larger encoder may fall; one window is allowed."""
MOST_WRONG = 0.03
"""Share of the labelled windows by which those labelled correctly may fall; one window is allowed."""
MOST_ALIKE = 0.2
"""Without a larger encoder: share of the device's windows by which its commonest label may grow."""
Array = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledWindows:
    """Windows of which the label is known."""

    windows: Array
    """(n, samples)."""
    truth: Places
    """(n,) the place of each window's label in the head."""


GetLabelled = Callable[[Head], LabelledWindows | None]
"""Finds the labelled windows that were kept for a head."""


@dataclass(frozen=True)
class AdaptationJudge:
    """Judges the adaptations of one recipient."""

    head: Head
    compiled: CutModel
    larger: AlignedEncoder | None
    labelled: LabelledWindows | None
    start: int = 0
    """The cut that the device's windows come from; only audio can be asked the larger encoder about."""

    def objection(self, adapted: CutModel, windows: Tensor) -> str:
        """Why weights must not be sent; empty if they may.

        Args:
            adapted: the encoder as the device would run it.
            windows: (n, ...) float32 of the device at `start`, which trained nothing.
        """
        embeddings = embedded(adapted, windows, self.start)
        if not torch.isfinite(embeddings).all():
            return "its embeddings are not finite"
        after, before = self._answers(embeddings), self._answers(embedded(self.compiled, windows, self.start))
        if self.larger is None or self.start:
            return _collapsed(before, after) or self._forgotten(adapted)
        with torch.inference_mode():
            told = np.asarray(in_batches(self._told, windows).argmax(1))
        gone = int((before == told).sum() - (after == told).sum())
        if gone > max(1, MOST_DISAGREEING * len(told)):
            return f"agrees with the larger encoder on {gone} of {len(told)} windows fewer than before"
        return self._forgotten(adapted)

    def _told(self, windows: Tensor) -> Tensor:
        assert self.larger is not None
        return self.larger.logits(windows, self.head)

    def _forgotten(self, adapted: CutModel) -> str:
        """Why the labelled windows speak against weights."""
        if self.labelled is None:
            return ""
        windows, truth = torch.from_numpy(self.labelled.windows), self.labelled.truth
        right = [int((self._answers(embedded(model, windows)) == truth).sum()) for model in (self.compiled, adapted)]
        if right[0] - right[1] > max(1, MOST_WRONG * len(truth)):
            return f"labels {right[1]} of {len(truth)} known windows correctly, {right[0]} before"
        return ""

    def _answers(self, embeddings: Tensor) -> Places:
        """(n,) the place of each window's label in the head."""
        return np.asarray(self.head.logits(embeddings.numpy()).argmax(axis=1))


def embedded(model: CutModel, windows: Tensor, start: int = 0) -> Tensor:
    """Embeddings (n, d) of windows (n, samples) float32, or of activations (n, ...) at the cut `start`."""
    with torch.inference_mode():
        return in_batches(lambda part: run_segments(model.segments[start:], part), windows)


def _collapsed(before: Places, after: Places) -> str:
    commonest = [int(np.bincount(answers).max()) for answers in (before, after)]
    if commonest[1] - commonest[0] > max(1, MOST_ALIKE * len(after)):
        return f"gives one label to {commonest[1]} of {len(after)} windows, to {commonest[0]} before"
    return ""
