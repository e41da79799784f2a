"""Frame replay: a trainer that starts reads the recent windows of its partitions from the broker again.

Windows are kept only in the broker's stream. Acknowledged frames stay there until its limits are reached, so a consumer
that acknowledges nothing can read them again:

    outcome = await FrameReplay(hub, generations, trainer, counted).run(partitions)

A window that a resumed trainer held is restored; one that it had trained on and dropped is skipped. One that was
counted but is unknown to the trainer (the checkpoint is older, or missing) is added. One that was not counted is left
to ingest, which may run at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import nats.errors
import torch
from nats.aio.msg import Msg
from nats.js.api import StreamInfo

from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.errors import FrameError, LinkError
from runtime_edge.formats import subjects
from runtime_edge.formats.codec import STREAMS
from runtime_edge.formats.wire import WIRE_ENCODINGS
from runtime_server.broker.consumer import delivery
from runtime_server.broker.hub import Hub
from runtime_server.broker.stored_frames import stored_frames
from runtime_server.ingest.arrival import Arrival, decode_arrival
from runtime_server.ingest.audio_streams import AudioStreams
from runtime_server.state.ledger import Ledger
from runtime_server.suffix.generations import Generations
from runtime_server.training.buffer import TrainingWindow
from runtime_server.training.trainer import Trainer

_LOG = logging.getLogger(__name__)
_FETCH, _FETCH_BYTES = 128, 8 << 20


@dataclass(frozen=True)
class ReplayConfig:
    """How much of the stream is read again; reading ends at the first limit reached."""

    max_frames: int = 200_000
    max_bytes: int = 512 << 20
    """Approximate: computed with the stream's mean frame size."""
    max_age_s: float = 24 * 3600.0
    """Older frames are not added; those that a resumed trainer held are still restored."""


@dataclass(frozen=True)
class ReplayOutcome:
    """The result of a replay."""

    read: int
    """Frames that were read."""
    put_back: int
    """Windows that a resumed trainer held, and holds again."""
    taken: int
    """Windows that were counted before but are new to the trainer."""
    missing: int
    """Windows that the trainer held and that can no longer be read."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Skipped frames by reason: "known", "uncounted", "old", "retired", "garbage"."""
    seconds: float = 0.0


class FrameReplay:
    """Reads for one trainer. `counted` holds the windows counted before ingest began, and must not change."""

    def __init__(
        self, hub: Hub, generations: Generations, trainer: Trainer, counted: Ledger, config: ReplayConfig | None = None
    ) -> None:
        self._hub, self._generations, self._trainer, self._counted = hub, generations, trainer, counted
        self._config = config or ReplayConfig()
        self._seen: Counter[str] = Counter()
        self._streams = AudioStreams()

    async def run(self, partitions: Iterable[int]) -> ReplayOutcome:
        """Read the recent frames of the partitions once. Raises LinkError; then it may be called again."""
        began, self._seen, self._streams = time.monotonic(), Counter(), AudioStreams()
        try:
            info = await self._hub.stream.stream_info(subjects.STREAM)
            self._check_stream(info)
            if info.state.messages and self._config.max_frames and self._config.max_bytes:
                for partition in partitions:
                    await self._read(partition, info)
        except (*BROKER_ERRORS, nats.errors.Error) as exc:
            raise LinkError(f"broker {self._hub.url}: cannot read the stream again ({reason(exc)})") from None
        missing = len(self._trainer.to_reread)
        self._trainer.to_reread.clear()  # the rest cannot be read any more: do not look for it again
        seen = self._seen
        read, put_back, taken = seen.pop("read", 0), seen.pop("put back", 0), seen.pop("taken", 0)
        return ReplayOutcome(read, put_back, taken, missing, dict(seen), time.monotonic() - began)

    def _check_stream(self, info: StreamInfo) -> None:
        """Forget all sequence numbers if the stream is another or a recreated one: they are meaningless there."""
        created = "" if info.created is None else info.created.isoformat()
        if self._trainer.stream != created:
            if self._trainer.stream:
                _LOG.warning("the stream is not the one that was trained on: windows from before are not found again")
            self._trainer.forget_stream(created)

    def _first(self, info: StreamInfo) -> int:
        """The first sequence number to read: within the limits, and after those known to be trained."""
        state, config = info.state, self._config
        mean = max(state.bytes / state.messages, 1.0)
        bounded = state.last_seq + 1 - min(config.max_frames, int(config.max_bytes / mean))
        needed = min([self._trainer.trained.floor + 1, *self._trainer.to_reread])
        return max(state.first_seq, bounded, needed, 1)

    async def _read(self, partition: int, info: StreamInfo) -> None:
        first, last = self._first(info), info.state.last_seq
        if first > last:
            return
        size = max(1, min(_FETCH, int(_FETCH_BYTES * info.state.messages / max(info.state.bytes, 1))))
        frames = stored_frames(self._hub, subjects.partition_filter(partition), first, size)
        async with contextlib.aclosing(frames) as batches:
            async for messages in batches:
                within = [message for message in messages if delivery(message).place <= last]
                await asyncio.to_thread(self._absorb, within)
                if len(within) < len(messages):
                    break

    def _absorb(self, messages: Sequence[Msg]) -> None:
        """Handle frames in the order of the stream; runs in a thread."""
        trainer, oldest = self._trainer, datetime.now(timezone.utc) - timedelta(seconds=self._config.max_age_s)
        self._seen["read"] += len(messages)
        again: list[TrainingWindow] = []
        anew: list[TrainingWindow] = []
        for arrival in self._arrivals(messages):
            why = ""
            try:
                had = arrival.sequence in trainer.to_reread
                why = "" if had else self._skip_reason(arrival, oldest)
                window = self._window(arrival) if not why or _streamed(arrival) else None
            except FrameError:
                why = why or "garbage"  # or audio whose stream began before the replay did
            if why:
                self._seen[why] += 1
            elif window is None:
                self._seen["retired"] += 1
            else:
                (again if had else anew).append(window)
        for window in again:
            trainer.restore(window)
        for window in anew:
            trainer.add(window)
        self._seen.update({"put back": len(again), "taken": len(anew)})

    def _arrivals(self, messages: Sequence[Msg]) -> Iterator[Arrival]:
        """The windows of the frames that decode."""
        for message in messages:
            try:
                yield from decode_arrival(message, delivery(message).place, 0.0)
            except FrameError:
                self._seen["garbage"] += 1

    def _skip_reason(self, arrival: Arrival, oldest: datetime) -> str:
        """Why to skip a frame that the trainer did not hold; empty if it should be added."""
        if arrival.sequence in self._trainer.trained:
            return "known"
        if not self._counted.holds(arrival.device, arrival.boot, arrival.header.window):
            return "uncounted"
        return "old" if arrival.message.metadata.timestamp < oldest else ""

    def _window(self, arrival: Arrival) -> TrainingWindow | None:
        """The window to train on; None if its generation is no longer kept or did not make it. Raises FrameError."""
        generation = self._generations.get(arrival.header.generation)
        if generation is None:
            return None
        activation = torch.tensor(self._streams.activation(generation, arrival))
        if not generation.trains_on(arrival.header):
            return None
        return arrival.window(activation, *generation.in_range(arrival.header.cut, activation[None]))


def _streamed(arrival: Arrival) -> bool:
    """Whether a frame continues an audio stream, so that every frame of the stream must be decoded."""
    return WIRE_ENCODINGS[arrival.header.encoding] in STREAMS
