"""The first stage of the ingest: unpacks each frame of a batch separately."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from runtime_edge.errors import FrameError
from runtime_edge.formats.wire import ReplyStatus
from runtime_server.adaptation.known_adaptations import KnownAdaptations
from runtime_server.ingest.arrival import Arrival
from runtime_server.ingest.audio_streams import AudioStreams
from runtime_server.ingest.batches import Completion, DecodedBatch, FrameBatch
from runtime_server.ingest.stage_thread import StageThread
from runtime_server.suffix.generations import Generation, Generations

_LOG = logging.getLogger(__name__)


class DecodeStage:
    """Owns the decode thread and the devices' audio streams."""

    def __init__(self, generations: Generations, adaptations: KnownAdaptations | None = None) -> None:
        self._generations, self._adaptations, self._streams = generations, adaptations, AudioStreams()
        self._thread = StageThread("decode")

    async def decode(self, batch: FrameBatch) -> DecodedBatch:
        """The activations of a batch; a frame without one gets its outcome here."""
        return await self._thread.run(self._decode, batch)

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _decode(self, batch: FrameBatch) -> DecodedBatch:
        """Runs in the decode thread."""
        began = time.monotonic()
        generation = self._generations.get(batch.generation)
        if generation is None:
            status: ReplyStatus = "retired" if batch.generation < self._generations.newest.number else "refused"
            return DecodedBatch(batch, None, [Completion(status)] * len(batch.arrivals), 0.0)
        generation = self._adapted(generation, batch)
        found = [self._activation(generation, arrival) for arrival in batch.arrivals]
        return DecodedBatch(batch, generation, found, time.monotonic() - began)

    def _adapted(self, generation: Generation, batch: FrameBatch) -> Generation:
        """The generation with the weights of the adaptation that made a batch; as it is if none did."""
        header = batch.arrivals[0].header
        if self._adaptations is None or generation.made(header):
            return generation
        return self._adaptations.served(generation, header.model) or generation

    def _may_run(self, arrival: Arrival, generation: Generation) -> bool:
        """Whether a frame names the model that completes it, and one that is for its device."""
        if not generation.adaptation or self._adaptations is None:
            return generation.made(arrival.header)
        return self._adaptations.may_run(arrival.device, arrival.header.model)

    def _activation(self, generation: Generation, arrival: Arrival) -> Tensor | Completion:
        """The activation of a frame, or the outcome of a frame without one."""
        if not self._may_run(arrival, generation):
            return Completion("foreign")
        try:
            return torch.from_numpy(self._streams.activation(generation, arrival))
        except FrameError as exc:
            return Completion.poisoned(exc)
        except Exception as exc:  # a hostile payload must not stop the other frames
            _LOG.exception("frame of %s cannot be decoded", arrival.device)
            return Completion.poisoned(exc)
