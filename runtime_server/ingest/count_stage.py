"""The third stage of the ingest: counts every window once, feeds the trainer, and writes the replies."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from torch import Tensor

from runtime_edge.formats.wire import Reply
from runtime_server.ingest.arrival import Arrival
from runtime_server.ingest.batches import CompletedBatch, Completion, CountedBatch
from runtime_server.ingest.stage_thread import StageThread
from runtime_server.state.ledger import Ledger, PartitionedLedger
from runtime_server.suffix.generations import Generations
from runtime_server.training.mixtures import Mixtures
from runtime_server.training.trainer import Trainer

Hear = Callable[[str, int, Tensor, int, int], None]
"""Gets the name of a device, its generation, a window (1, ...) float32 at its cut, the cut and the model that the frame
names; it must not wait.
"""


class CountStage:
    """Owns the counting thread and the devices' mixtures; nothing else adds to the ledger.

    `hear` gets each new window that a device has not completed itself.
    """

    def __init__(
        self,
        generations: Generations,
        ledger: Ledger | PartitionedLedger,
        trainer: Trainer | None = None,
        hear: Hear | None = None,
    ) -> None:
        self._generations, self._ledger, self._trainer, self._hear = generations, ledger, trainer, hear
        self._mixtures, self._thread = Mixtures(), StageThread("count")

    async def count(self, completed: CompletedBatch) -> CountedBatch:
        """Record each window in the ledger, pass new ones to the trainer, and prepare the replies."""
        return await self._thread.run(self._count, completed)

    async def catch_up(self, is_busy: Callable[[], bool]) -> None:
        """Let the mixtures learn from recent embeddings until there is more urgent work."""
        if not is_busy():
            await self._thread.run(self._mixtures.catch_up, is_busy)

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _count(self, completed: CompletedBatch) -> CountedBatch:
        """Runs in the counting thread."""
        completions = [
            self._unless_counted(arrival, completion)
            for arrival, completion in zip(completed.batch.arrivals, completed.completions, strict=True)
        ]
        frames = list(zip(completed.batch.arrivals, completions, strict=True))
        newest = self._generations.newest.number
        ids = [
            (arrival.device, arrival.boot, arrival.header.window)
            for arrival, completion in frames
            if completion.embedding is not None
        ]
        first = self._ledger.add_all(ids)
        new = iter(first)
        replies: list[Reply] = []
        for arrival, completion in frames:
            if completion.embedding is None:
                replies.append(arrival.reply(newest, completion.status))
                continue
            if next(new) and completion.activation is not None:
                self._learn(arrival, completion.activation, completion.in_range)
            embedding = completion.embedding.numpy()
            whole = arrival.asked == "everything"
            boot = "" if whole else arrival.boot
            mixture = self._mixtures.add(arrival.device, embedding, boot, answered=bool(arrival.inbox))
            replies.append(arrival.reply(newest, "ok", embedding, mixture))
        windows = sum(first)
        return CountedBatch(completed.batch, completions, replies, windows, len(ids) - windows)

    def _learn(self, arrival: Arrival, activation: Tensor, in_range: bool) -> None:
        """Pass a new window, (rows, ...) at its cut, to those who learn from it."""
        header = arrival.header
        if self._hear is not None and in_range and len(activation) == 1:
            self._hear(arrival.device, header.generation, activation, header.cut, header.model)
        generation = self._generations.get(header.generation)
        if self._trainer is not None and (generation is None or generation.trains_on(header)):
            self._trainer.add(arrival.window(activation, in_range))

    def _unless_counted(self, arrival: Arrival, completion: Completion) -> Completion:
        """The completion; no dead letter for a counted frame that is redelivered after its audio stream moved on."""
        if completion.poison and self._ledger.holds(arrival.device, arrival.boot, arrival.header.window):
            return msgspec.structs.replace(completion, poison="")
        return completion
