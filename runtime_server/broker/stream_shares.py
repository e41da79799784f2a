"""Each device's share of the stream of frames: a device that fills the stream loses its own oldest frames.

The broker limits only the whole stream and drops the oldest frames, whoever sent them. So the server keeps part of it
free: when the stream is nearly full, it removes frames of the devices that hold more than twice an equal share.

    shares = StreamShares(hub)
    asyncio.create_task(shares.run())
    shares.note(subject, place, len(frame))         # each frame that is read
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections import deque
from dataclasses import dataclass

import msgspec

from runtime_edge.base.broker_errors import BROKER_ERRORS, reason
from runtime_edge.errors import FormatError
from runtime_edge.formats import subjects
from runtime_edge.formats.strict import decode
from runtime_server.broker.hub import Hub

_LOG = logging.getLogger(__name__)
PERIOD_S = 1.0
_FULL, _LEFT = 7 / 8, 3 / 4
"""Fractions of the stream's size limit: frames are removed above the first, until the second is left."""
_TIMES = 2.0
"""A device loses frames only above this many equal shares; devices are never quite alike."""
_RUNS = 4096
"""The number of runs in which the stream's bytes are counted: many frames of one device in a row are one entry."""
_HEADER_BYTES = 160
"""Roughly what the broker stores for a frame besides its data."""
_ANSWER_S = 2.0
_MAX_ANSWER_BYTES = 1 << 20


class _Limits(msgspec.Struct):
    max_bytes: int = -1


class _Held(msgspec.Struct):
    bytes: int = 0
    first_seq: int = 0
    num_subjects: int = 1


class StreamSize(msgspec.Struct):
    """The size of a stream according to the broker; the defaults if the stream does not exist."""

    config: _Limits = msgspec.field(default_factory=_Limits)
    state: _Held = msgspec.field(default_factory=_Held)

    @classmethod
    def from_json(cls, data: bytes) -> StreamSize:
        """Raises FormatError."""
        return decode(data, cls, "the broker's answer about the stream of frames", _MAX_ANSWER_BYTES)


@dataclass
class _Run:
    """Consecutive frames of one device."""

    nbytes: int
    last: int
    """Sequence number of the last one in the stream."""


class StreamShares:
    """What each device holds in the stream, as far as this process has read it. Used on the event loop."""

    def __init__(self, hub: Hub, period_s: float = PERIOD_S) -> None:
        self.removed = 0
        """Bytes of frames removed, approximately."""
        self._hub, self._period_s = hub, period_s
        self._runs: dict[str, deque[_Run]] = {}
        self._sizes: dict[str, int] = {}
        self._run_bytes = 1 << 16
        self._read, self._enough = 0, 1 << 24
        """Bytes read since the last check, and how many bring the next check forward."""
        self._due = asyncio.Event()

    def note(self, subject: str, place: int, nbytes: int) -> None:
        """Count a message that was read, by its sequence number; a redelivered message is counted only once."""
        size = nbytes + _HEADER_BYTES
        runs = self._runs.get(subject)
        if runs is None:
            self._runs[subject], self._sizes[subject] = deque([_Run(size, place)]), size
        else:
            run = runs[-1]
            if place <= run.last:
                return
            if run.nbytes < self._run_bytes:
                run.nbytes += size
                run.last = place
            else:
                runs.append(_Run(size, place))
            self._sizes[subject] += size
        self._read += size
        if self._read >= self._enough:
            self._due.set()

    async def run(self) -> None:
        """Check every `period_s` seconds, or sooner if much was read, until cancelled."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._due.wait(), self._period_s)
            self._due.clear()
            try:
                await self.look()
            except (FormatError, *BROKER_ERRORS) as exc:
                _LOG.debug("the stream's size: %s", reason(exc))

    async def look(self) -> None:
        """If the stream is nearly full, remove frames of the devices that hold too much.

        Raises FormatError, and what the library raises.
        """
        self._read = 0
        # Asked directly: the library's version of the answer leaves out the number of devices.
        answer = await self._hub.client.request(f"$JS.API.STREAM.INFO.{subjects.STREAM}", timeout=_ANSWER_S)
        told = StreamSize.from_json(answer.data)
        limit, held = told.config.max_bytes, told.state
        if limit <= 0:
            return
        self._run_bytes, self._enough = limit // _RUNS, limit // 32
        self._forget(held.first_seq)
        if held.bytes <= _FULL * limit:
            return
        share = _TIMES * _LEFT * limit / max(held.num_subjects, 1)
        for subject, place in self._surplus(held.bytes - _LEFT * limit, share).items():
            _LOG.warning("%s: fills the stream of frames; its oldest frames are removed", subject)
            await self._hub.stream.purge_stream(subjects.STREAM, seq=place + 1, subject=subject)

    def _forget(self, first: int) -> None:
        """Forget the frames before `first`, which the broker has dropped itself."""
        for subject, runs in list(self._runs.items()):
            while runs and runs[0].last < first:
                self._sizes[subject] -= runs.popleft().nbytes
            if not runs:
                del self._runs[subject], self._sizes[subject]

    def _surplus(self, too_much: float, share: float) -> dict[str, int]:
        """For each subject, the sequence number up to which to remove frames.

        They are always taken from the subject that holds most, until each is down to `share`.
        """
        found: dict[str, int] = {}
        largest = [(-size, subject) for subject, size in self._sizes.items()]
        heapq.heapify(largest)
        while too_much > 0 and largest:
            size, subject = heapq.heappop(largest)
            if -size <= share:
                break
            if len(self._runs[subject]) == 1:
                continue  # its latest frames stay
            run = self._runs[subject].popleft()
            found[subject] = run.last
            too_much -= run.nbytes
            self.removed += run.nbytes
            self._sizes[subject] -= run.nbytes
            heapq.heappush(largest, (-self._sizes[subject], subject))
        return found
