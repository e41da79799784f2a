"""The second stage of the ingest: runs the suffix on a decoded batch."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from runtime_edge.base.histogram import Histogram
from runtime_server.ingest.batches import CompletedBatch, Completion, DecodedBatch
from runtime_server.ingest.stage_thread import StageThread
from runtime_server.suffix.generations import Generation

_LOG = logging.getLogger(__name__)


class CompleteStage:
    """Owns the torch thread."""

    def __init__(self) -> None:
        self.batch_ms = Histogram()
        """Time for decoding and completing a batch."""
        self._thread = StageThread("complete")

    async def complete(self, decoded: DecodedBatch) -> CompletedBatch:
        """Complete all frames of a batch that have an activation, in one pass through a generation's suffix."""
        completed = await self._thread.run(_complete, decoded)
        self.batch_ms.observe(completed.seconds * 1e3)
        return completed

    def close(self) -> None:
        """End the thread."""
        self._thread.close()


def _complete(decoded: DecodedBatch) -> CompletedBatch:
    """Runs in the torch thread."""
    began = time.monotonic()
    activations = [found for found in decoded.found if isinstance(found, Tensor)]
    embedded = iter(complete(decoded.generation, decoded.batch.cut, activations) if decoded.generation else ())
    completions = [found if isinstance(found, Completion) else next(embedded) for found in decoded.found]
    return CompletedBatch(decoded.batch, completions, decoded.seconds + time.monotonic() - began)


def complete(generation: Generation, cut: int, activations: list[Tensor]) -> list[Completion]:
    """Outcomes of activations (rows, ...) of equal shape; if they fail together, each half is tried alone."""
    if not activations:
        return []
    together = torch.cat(activations)
    try:
        embeddings = generation.complete(cut, together)
    except Exception as exc:
        if len(activations) == 1:
            _LOG.exception("a frame at cut %d of generation %d cannot be completed", cut, generation.number)
            return [Completion.poisoned(exc)]
        half = len(activations) // 2
        return complete(generation, cut, activations[:half]) + complete(generation, cut, activations[half:])
    finite = torch.isfinite(embeddings).all(dim=1).tolist()
    in_range = generation.in_range(cut, together.reshape(len(activations), -1))
    return [
        Completion("ok", activation, is_in_range, embedding)
        if is_finite
        else Completion("refused", poison="its embedding is not finite")
        for activation, embedding, is_finite, is_in_range in zip(activations, embeddings, finite, in_range, strict=True)
    ]
