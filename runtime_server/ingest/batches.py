"""The messages between the stages of the ingest, in order: waiting, decoded, completed, counted."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from torch import Tensor

from runtime_edge.errors import FrameError
from runtime_edge.formats.wire import Reply, ReplyStatus
from runtime_server.ingest.arrival import Arrival
from runtime_server.suffix.generations import Generation


@dataclass(frozen=True)
class FrameBatch:
    """Frames for one pass through a suffix, all made by one model."""

    generation: int
    cut: int
    arrivals: list[Arrival]
    suspect: bool = False
    """Whether this is one frame alone, because it may have crashed an earlier process."""


class Completion(msgspec.Struct, frozen=True):
    """The outcome of one frame."""

    status: ReplyStatus
    """The status for its reply."""
    activation: Tensor | None = None
    """(rows, ...) float32 if the status is ok."""
    in_range: bool = True
    """Whether the activation is within the range that calibration predicts."""
    embedding: Tensor | None = None
    """(d,) float32 if the status is ok."""
    poison: str = ""
    """Why the frame can never be completed; empty otherwise."""

    @classmethod
    def poisoned(cls, exc: Exception) -> Completion:
        """The completion of a frame that raised `exc` and would raise it again."""
        return cls("refused", poison=str(exc) if isinstance(exc, FrameError) else f"{type(exc).__name__}: {exc}")


@dataclass(frozen=True)
class DecodedBatch:
    """A batch whose frames are unpacked."""

    batch: FrameBatch
    generation: Generation | None
    """The generation that completes the batch; None if this server does not have it."""
    found: list[Tensor | Completion]
    """For each frame its activation, or its outcome if it has none."""
    seconds: float
    """The duration of decoding."""


@dataclass(frozen=True)
class CompletedBatch:
    """A batch that has been through the suffix."""

    batch: FrameBatch
    completions: list[Completion]
    """One for each frame."""
    seconds: float
    """The duration of decoding and completing."""


@dataclass(frozen=True)
class CountedBatch:
    """A batch whose windows are in the ledger."""

    batch: FrameBatch
    completions: list[Completion]
    replies: list[Reply]
    """One for each frame."""
    windows: int
    """Windows counted for the first time."""
    duplicates: int
    """Windows that had been counted before."""
