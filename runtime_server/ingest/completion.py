"""Completes frames: decodes them one by one, runs the suffix on a batch, and reports each frame's outcome."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime_edge.errors import FrameError
from runtime_edge.formats.wire import ReplyStatus
from runtime_server.ingest.arrival import Arrival
from runtime_server.ingest.audio_streams import AudioStreams
from runtime_server.ingest.backlog import FrameBatch
from runtime_server.suffix.generations import Generation, Generations

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completion:
    """The outcome of one frame."""

    status: ReplyStatus
    """As in its reply."""
    activation: Tensor | None = None
    """(rows, ...) float32 when it is ok."""
    in_range: bool = True
    """Whether the activation is one that calibration lets expect."""
    embedding: Tensor | None = None
    """(d,) float32 when it is ok."""
    poison: str = ""
    """Why the frame can never be completed; empty otherwise."""


@dataclass(frozen=True)
class DecodedBatch:
    """A decoded batch, passed from the decode thread to the torch thread."""

    generation: Generation | None
    cut: int
    found: list[Tensor | Completion]
    """Of each frame its activation, or what becomes of it without."""
    seconds: float


class Completer:
    """Each of its two steps is used by one thread."""

    def __init__(self, generations: Generations) -> None:
        self._generations, self._streams = generations, AudioStreams()

    def decode(self, batch: FrameBatch) -> DecodedBatch:
        """The activations of a batch."""
        began = time.monotonic()
        generation = self._generations.get(batch.generation)
        if generation is None:
            status: ReplyStatus = "retired" if batch.generation < self._generations.newest.number else "refused"
            return DecodedBatch(None, batch.cut, [Completion(status)] * len(batch.arrivals), 0.0)
        found = [self._decode(generation, arrival) for arrival in batch.arrivals]
        return DecodedBatch(generation, batch.cut, found, time.monotonic() - began)

    def complete(self, decoded: DecodedBatch) -> tuple[list[Completion], float]:
        """One pass through the suffix of a generation for all frames of a batch; an outcome for each, and the seconds
        that both steps took.
        """
        began = time.monotonic()
        activations = [found for found in decoded.found if isinstance(found, Tensor)]
        completed = iter(complete(decoded.generation, decoded.cut, activations) if decoded.generation else ())
        outcomes = [found if isinstance(found, Completion) else next(completed) for found in decoded.found]
        return outcomes, decoded.seconds + time.monotonic() - began

    def _decode(self, generation: Generation, arrival: Arrival) -> Tensor | Completion:
        """The activation of a frame, or what becomes of one that has none."""
        if not generation.made(arrival.header):
            return Completion("foreign")
        try:
            return torch.from_numpy(self._streams.activation(generation, arrival))
        except FrameError as exc:
            return _poison(exc)
        except Exception as exc:  # a hostile payload must not stop the other frames
            _LOG.exception("frame of %s cannot be decoded", arrival.device)
            return _poison(exc)


def complete(generation: Generation, cut: int, activations: list[Tensor]) -> list[Completion]:
    """Outcomes of activations (rows, ...) of equal shape; where all together fail, each half is tried alone."""
    if not activations:
        return []
    try:
        embeddings = generation.complete(cut, torch.cat(activations))
    except Exception as exc:
        if len(activations) == 1:
            _LOG.exception("a frame at cut %d of generation %d cannot be completed", cut, generation.number)
            return [_poison(exc)]
        half = len(activations) // 2
        return complete(generation, cut, activations[:half]) + complete(generation, cut, activations[half:])
    finite = torch.isfinite(embeddings).all(dim=1).tolist()
    return [
        Completion("ok", activation, generation.in_range(cut, activation), embedding)
        if is_finite
        else Completion("refused", poison="its embedding is not finite")
        for activation, embedding, is_finite in zip(activations, embeddings, finite, strict=True)
    ]


def _poison(exc: Exception) -> Completion:
    return Completion("refused", poison=str(exc) if isinstance(exc, FrameError) else f"{type(exc).__name__}: {exc}")
