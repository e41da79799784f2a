"""Frames in, embeddings out: batch by (generation, cut), complete, reply, remember for training."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import nats.errors
import numpy as np
import numpy.typing as npt
import torch
from nats.aio.msg import Msg

from runtime_edge import subjects
from runtime_edge.errors import FrameError, SscError
from runtime_edge.histogram import Histogram
from runtime_edge.memory import GaussianMemory
from runtime_edge.tasks import cancel_all, next_within
from runtime_edge.wire import SCHEMA_VERSION, Reply, encode_reply
from runtime_server.arrival import Arrival, decode_arrival
from runtime_server.audio_streams import AudioStreams
from runtime_server.buffer import Window
from runtime_server.consumer import PullConsumer
from runtime_server.generations import Generations
from runtime_server.hub import Hub
from runtime_server.ledger import Ledger, PartitionedLedger
from runtime_server.rate import RateLimit
from runtime_server.trainer import Trainer

_LOG = logging.getLogger(__name__)
_MAX_BATCH = 32
_LINGER_S = 0.003
_T_SYNC = 100
_MAX_MEMORIES = 4096


class Ingest:
    """Serves the partitions; the torch work is done in one thread, the rest on the event loop."""

    def __init__(
        self,
        hub: Hub,
        generations: Generations,
        trainer: Trainer | None,
        ledger: Ledger | PartitionedLedger,
        rate: RateLimit | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.latency_ms = {"batch": Histogram(), "reply": Histogram()}
        """Of a batch in the torch thread, and of a frame from its arrival to its answer."""
        self.ledger = ledger
        self._hub, self._generations, self._trainer = hub, generations, trainer
        self._rate = rate or RateLimit()
        # Short: what waits here longer than the broker's patience is delivered a second time.
        self._queue: asyncio.Queue[tuple[Msg, float]] = asyncio.Queue(2 * _MAX_BATCH)
        self._torch = ThreadPoolExecutor(1, "complete")
        self._streams = AudioStreams()
        self._memories: OrderedDict[str, GaussianMemory] = OrderedDict()
        self._since_sync: Counter[str] = Counter()

    async def run(self, partitions: Iterable[int]) -> None:
        """Until cancelled."""
        readers = [asyncio.create_task(self._read(partition)) for partition in partitions]
        try:
            while True:
                await self._serve(await self._next_batch())
        finally:
            await cancel_all(readers)
            self._torch.shutdown(wait=True)

    async def _read(self, partition: int) -> None:
        """Messages of one partition into the queue; starts over when the broker was away."""
        while True:
            try:
                async for message in PullConsumer(self._hub.client, partition).messages():
                    await self._queue.put((message, time.monotonic()))
            except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError, OSError) as exc:
                _LOG.warning("partition %d: %s", partition, exc or type(exc).__name__)
                await asyncio.sleep(0.5)

    async def _next_batch(self) -> list[tuple[Msg, float]]:
        """One message at least, and what else arrives within the linger time."""
        batch = [await self._queue.get()]
        deadline = time.monotonic() + _LINGER_S
        while len(batch) < _MAX_BATCH:
            item = await next_within(self._queue, max(0.0, deadline - time.monotonic()))
            if item is None:
                break
            batch.append(item)
        return batch

    async def _serve(self, batch: list[tuple[Msg, float]]) -> None:
        groups: dict[tuple[int, int], list[Arrival]] = defaultdict(list)
        for message, arrived in batch:
            try:
                arrival = decode_arrival(message, arrived)
            except FrameError as exc:
                await self._drop(message, exc)
                continue
            if not self._rate.allow(arrival.device):
                await self._deny(arrival)
                continue
            groups[arrival.header.generation, arrival.header.cut].append(arrival)
        for (generation, cut), arrivals in groups.items():
            began = time.monotonic()
            replies = await asyncio.get_running_loop().run_in_executor(
                self._torch, self._complete, generation, cut, arrivals
            )
            self.latency_ms["batch"].observe((time.monotonic() - began) * 1e3)
            for arrival, reply in zip(arrivals, replies, strict=True):
                await self._answer(arrival, reply)

    def _complete(self, number: int, cut: int, arrivals: list[Arrival]) -> list[Reply]:
        """In the torch thread: one pass through the suffix for all arrivals of one generation and cut."""
        generation = self._generations.get(number)
        newest = self._generations.newest.number
        if generation is None:
            status = "retired" if number < newest else "refused"
            self.counters[status] += len(arrivals)
            return [_reply(arrival, newest, status) for arrival in arrivals]
        decoded: dict[int, npt.NDArray[np.float32]] = {}
        for place, arrival in enumerate(arrivals):
            try:
                decoded[place] = self._streams.activation(generation, arrival)
            except FrameError as exc:
                self.counters["refused"] += 1
                _LOG.warning("%s: %s", arrival.device, exc)
        replies = [_reply(arrival, newest, "refused") for arrival in arrivals]
        if not decoded:
            return replies
        activations = torch.from_numpy(np.concatenate(list(decoded.values())))
        embeddings = generation.complete(cut, activations)
        finite = torch.isfinite(embeddings).all(dim=1)
        rows = activations.shape[0] // len(decoded)
        for row, place in enumerate(decoded):
            if not finite[row]:
                self.counters["refused"] += 1
                continue
            arrival = arrivals[place]
            self._remember(arrival, activations[row * rows : (row + 1) * rows], embeddings[row])
            replies[place] = self._completed(arrival, newest, embeddings[row].numpy())
        return replies

    def _remember(self, arrival: Arrival, activation: torch.Tensor, embedding: torch.Tensor) -> None:
        """Exactly once for each window: count it, and keep it for training."""
        if not self.ledger.add(arrival.device, arrival.boot, arrival.header.window):
            self.counters["duplicates"] += 1
            return
        self.counters["windows"] += 1
        if self._trainer is not None:
            header = arrival.header
            self._trainer.take(
                Window(
                    device=arrival.device,
                    boot=arrival.boot,
                    index=header.window,
                    generation=header.generation,
                    cut=header.cut,
                    activation=activation,
                    uncertainty=header.uncertainty,
                    embedding=embedding,
                    sequence=arrival.sequence,
                )
            )

    def _completed(self, arrival: Arrival, newest: int, embedding: npt.NDArray[np.float32]) -> Reply:
        memory = self._memories.pop(arrival.device, None) or GaussianMemory(dim=embedding.size)
        self._memories[arrival.device] = memory
        if len(self._memories) > _MAX_MEMORIES:
            self._memories.popitem(last=False)
        memory.update(embedding)
        self._since_sync[arrival.device] += 1
        due = self._since_sync[arrival.device] >= _T_SYNC
        if due:
            self._since_sync[arrival.device] = 0
        return _reply(
            arrival,
            newest,
            "ok",
            embedding.astype("<f2").tobytes(),
            memory.to_bytes() if due else b"",
        )

    async def _answer(self, arrival: Arrival, reply: Reply) -> None:
        inbox = (arrival.message.headers or {}).get(subjects.REPLY_HEADER)
        try:
            if inbox and subjects.is_reply(arrival.device, inbox):
                await self._hub.client.publish(inbox, encode_reply(reply))
            await arrival.message.ack()
            self.latency_ms["reply"].observe((time.monotonic() - arrival.arrived) * 1e3)
        except (nats.errors.Error, OSError) as exc:
            # Not acknowledged: the broker delivers it again, and the ledger keeps it from counting twice.
            _LOG.debug("answer to %s: %s", arrival.device, exc)

    async def _deny(self, arrival: Arrival) -> None:
        """A device that floods gets no more work done for it."""
        if not self.counters["over_rate"] % 1000:
            _LOG.warning("%s sends too much: `ssc server device revoke` keeps it out", arrival.device)
        self.counters["over_rate"] += 1
        await self._answer(arrival, _reply(arrival, self._generations.newest.number, "refused"))

    async def _drop(self, message: Msg, reason: SscError) -> None:
        """Garbage is counted and never comes back."""
        self.counters["garbage"] += 1
        _LOG.warning("%s: %s", message.subject, reason)
        try:
            await message.term()
        except (nats.errors.Error, OSError) as exc:
            _LOG.debug("%s: %s", message.subject, exc)


def _reply(arrival: Arrival, newest: int, status: str, embedding: bytes = b"", mixture: bytes = b"") -> Reply:
    elapsed_us = int((time.monotonic() - arrival.arrived) * 1e6)
    return Reply(SCHEMA_VERSION, arrival.header.window, newest, status, elapsed_us, embedding, mixture)
