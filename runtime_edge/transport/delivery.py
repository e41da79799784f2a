"""Delivers frames to the broker exactly once: live frames first, spooled ones when the link is free."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import time
from collections.abc import Callable, Sequence

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import LinkError, SpoolError
from runtime_edge.formats.wire import Reply
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.bandwidth_probe import CONFIRMATIONS, confirming_bytes
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.packing import PACKED_S, RESERVE_S, Packer, WaitingWindow
from runtime_edge.transport.protocol import FRAME_OVERHEAD_BYTES, Transport

_LOG = logging.getLogger(__name__)
_IDLE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_LOOKS_EVERY_S = 10.0
"""Seconds between two bandwidth probes that investigate late answers: a busy server has many."""
_ASKED_EVERY = 8
"""After this many answers in time, the broker is asked to acknowledge only one frame in this many."""


class Delivery:
    """Sends spooled frames. They leave the spool once the broker has acknowledged them, or an answer proves it."""

    def __init__(
        self,
        config: DeviceConfig,
        connection: Transport,
        frame_store: FrameStore,
        worker: Worker,
        counts: LoopCounts,
        uplink: BandwidthEstimator,
    ) -> None:
        self._config, self._connection, self._frame_store, self._worker = config, connection, frame_store, worker
        self._counts, self._uplink = counts, uplink
        self._sending = 0
        # Devices that lost the same broker at the same moment must not all come back at once.
        self._random = random.Random(f"{config.seed}.{frame_store.own}")  # noqa: S311
        self._packer = Packer(self._send_packed, asyncio.get_running_loop())
        self._server_s = 0.0
        """The server's own time for the latest answer, s."""
        self._in_time = 0
        """Consecutive answers that came in time."""
        self._by_answer: set[asyncio.Future[bool]] = set()
        """Outcomes of frames that only the server's answer acknowledges."""
        self._until_asked = 0
        self._probing: asyncio.Task[None] | None = None
        self._looked_at = -math.inf
        self._closed = False
        self._room_freed: asyncio.Future[None] | None = None
        self._to_replay = asyncio.Event()
        self._to_replay.set()

    @property
    def connected(self) -> bool:
        """Whether the device is connected."""
        return self._connection.connected

    def has_room(self) -> bool:
        """Whether another live frame may be sent now. From any thread."""
        return self._connection.connected and self._sending < self._config.in_flight

    async def wait_for_room(self) -> None:
        """Wait until another frame may be sent, or the connection is lost."""
        while self._connection.connected and not self.has_room():
            self._room_freed = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._room_freed}, timeout=_IDLE_S)

    def exchange(
        self,
        message_id: str,
        window: int,
        frame: bytes,
        deadline_s: float,
        on_answer: Callable[[Reply | None, float], None],
        hop_s: float = 0.0,
    ) -> None:
        """Send a claimed frame; call back with the server's answer (None if it does not come in time) and the seconds.

        If windows are packed together, the next one comes after `hop_s`.

        Delivery continues in the background until the broker has the frame or the attempt fails; a failed frame stays
        in the spool and is replayed later.
        """
        started = time.monotonic()
        decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def answered(reply: Reply | None) -> None:
            if reply is not None:
                self._server_s, self._in_time = reply.server_us / 1e6, self._in_time + 1
            else:
                self._in_time = 0
                # A late server says nothing about the link, which has carried the frame to the broker.
                stored = decided in self._by_answer or (decided.done() and decided.result())
                self._uplink.timeout(deadline_s, stored)
            on_answer(reply, time.monotonic() - started)

        self._connection.expect(window, deadline_s, answered)
        self._send_live(message_id, window, frame, True, decided, hop_s)

    def report(self, message_id: str, window: int, frame: bytes, hop_s: float = 0.0) -> None:
        """Send a claimed frame whose result is complete; the server answers only if something is wrong with it."""
        self._send_live(message_id, window, frame, False, asyncio.get_running_loop().create_future(), hop_s)

    @property
    def packs(self) -> bool:
        """Whether windows wait for each other, to share one message."""
        return self._config.deadline_s >= PACKED_S

    def flush(self) -> None:
        """Send the windows that wait for others, because no more come."""
        self._packer.flush()

    def _send_live(
        self, message_id: str, window: int, frame: bytes, embedding: bool, decided: asyncio.Future[bool], hop_s: float
    ) -> None:
        if not self.packs:
            self._send([message_id], window, frame, embedding, [decided])
            return
        uplink = self._uplink
        way_s = 2 * uplink.rtt_ms / 1e3 + 4 * len(frame) * 8 / 1e6 / uplink.uplink_mbits
        hold_s = self._config.deadline_s - max(RESERVE_S, way_s)
        self._packer.add(message_id, frame, embedding, decided, max(hold_s, 0.0), hop_s)

    def _send_packed(self, windows: list[WaitingWindow], frame: bytes) -> None:
        ids, decided = [window.message_id for window in windows], [window.decided for window in windows]
        self._send(ids, windows[0].header.window, frame, windows[0].embedding, decided)

    async def bandwidth_probe(self, frame_bytes: int, filler_bytes: int) -> None:
        """Run a bandwidth probe right after a small frame, or alone without one, unless others are in flight.

        It does not wait for the acknowledgement: on a long round trip the result would come a decision too late.
        """
        if not filler_bytes or self._sending != bool(frame_bytes) or not self._connection.connected:
            return
        before = frame_bytes + FRAME_OVERHEAD_BYTES if frame_bytes else 0
        self._sending += 1  # no replay in between: it would look like a slow link
        try:
            pair = await self._probe_pair(filler_bytes)
            for confirmations in range(CONFIRMATIONS):
                if not self._uplink.needs_confirmation(filler_bytes, pair[1], confirmations):
                    break
                before, filler_bytes = 0, confirming_bytes(filler_bytes)
                pair = await self._probe_pair(filler_bytes)
            self._uplink.observe_pair(filler_bytes, *pair, before)
        except LinkError as exc:
            _LOG.debug("%s", exc)
        finally:
            self._sent()

    async def _probe_pair(self, filler_bytes: int) -> tuple[float, float]:
        pair = await self._connection.bandwidth_probe(bytes(filler_bytes))
        self._counts.bytes_sent += filler_bytes
        return pair

    def replay_soon(self) -> None:
        """Wake the replay, because there may be spooled frames to send."""
        self._to_replay.set()

    async def replay_forever(self) -> None:
        """Send spooled frames, oldest first, whenever no live frame needs the link."""
        pause_s = _IDLE_S
        while not self._closed:
            await self._to_replay.wait()
            try:
                stored = self._connection.connected and await self._replay_one()
            except SpoolError as exc:
                _LOG.warning("%s", exc)
                stored = False
                self.replay_soon()
            if stored is False and self._connection.connected:
                await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = _IDLE_S
            if stored is False:
                await asyncio.sleep(_IDLE_S)

    async def drain(self, patience_s: float) -> None:
        """Wait until the spool is empty and no frame is in flight, at most `patience_s`."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if not self._sending and await self._worker.run(self._frame_store.depth) == 0:
                return
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Abandon the frames in flight; they stay in the spool."""
        self._closed = True
        if self._probing is not None:
            await cancel_all([self._probing])
        self._packer.forget()
        await self._worker.run(self._frame_store.give_up)

    async def _replay_one(self) -> bool | None:
        """Send the oldest spooled frame; returns whether the broker took it, None if there is none."""
        while self._sending and self._connection.connected:
            await asyncio.sleep(0.01)
        self._to_replay.clear()
        oldest = await self._worker.run(self._frame_store.claim_oldest)
        if oldest is None:
            return None
        self._to_replay.set()
        started = time.monotonic()
        decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        # Otherwise the reply to an earlier run's window would be mistaken for this run's window of the same number.
        window = oldest.index if self._frame_store.is_own(oldest.message_id) else None
        self._send([oldest.message_id], window, oldest.payload, False, [decided])
        stored = await decided
        self._counts.replayed += stored
        # Half the link's time is left to live frames.
        await asyncio.sleep((time.monotonic() - started) * stored)
        return stored

    def _send(
        self,
        message_ids: Sequence[str],
        window: int | None,
        frame: bytes,
        embedding: bool,
        decided: Sequence[asyncio.Future[bool]],
    ) -> None:
        """Try once to send a frame of claimed windows, and settle them with the outcome, which `decided` also receives:
        whether it was stored.
        """
        sent_bytes, alone = len(frame) + FRAME_OVERHEAD_BYTES, not self._sending
        by_answer = embedding and self._answers_acknowledge(sent_bytes)
        if by_answer:
            self._by_answer.update(decided)
        on_stored = functools.partial(self._on_stored, message_ids, sent_bytes, alone, decided, by_answer)
        self._sending += 1
        try:
            if alone:
                if self._uplink.wants_ping(sent_bytes, by_answer):
                    self._connection.ping(self._uplink.observe_round_trip)
                self._uplink.sending(sent_bytes, self._server_s if by_answer else 0.0)
            timeout_s = self._config.ack_timeout_s
            if by_answer:
                timeout_s = min(timeout_s, 2 * self._config.deadline_s)  # it may be a little late
            self._connection.send(message_ids[0], window, frame, on_stored, timeout_s, embedding, by_answer)
        except LinkError as exc:
            on_stored(exc)

    def _on_stored(
        self,
        message_ids: Sequence[str],
        sent_bytes: int,
        alone: bool,
        decided: Sequence[asyncio.Future[bool]],
        by_answer: bool,
        result: float | LinkError,
    ) -> None:
        """Handle a sent frame's outcome: the seconds until it was stored, or an error. After `close`, do nothing."""
        self._sent()
        self._by_answer.difference_update(decided)
        if self._closed:
            return
        delivered = not isinstance(result, LinkError)
        for message_id in message_ids:
            self._frame_store.settle_soon(message_id, delivered)
        for waiting in decided:
            if not waiting.done():
                waiting.set_result(delivered)
        if isinstance(result, LinkError):
            _LOG.debug("%s: %s", message_ids[0], result)
            self.replay_soon()
            return
        self._counts.stage_ms["publish"].observe(result * 1e3)
        self._counts.bytes_sent += sent_bytes
        if alone and by_answer and self._uplink.is_surprise(sent_bytes, result):
            # The server may have been held up, not the link: the broker is asked about the next frame.
            self._until_asked = 0
            self._uplink.dismiss()
            if time.monotonic() - self._looked_at > _LOOKS_EVERY_S:
                self._looked_at = time.monotonic()
                self._probing = asyncio.create_task(self.bandwidth_probe(0, sent_bytes))
        elif alone:
            self._uplink.observe(sent_bytes, result)

    def _answers_acknowledge(self, sent_bytes: int) -> bool:
        """Whether the server's answer is all the acknowledgement that the next frame needs.

        It is, as long as answers come in time, except for one frame in `_ASKED_EVERY`: the broker's acknowledgement of
        that one shows how much later the answer comes. A frame that is not answered in time is sent again, and the
        broker is asked. If each frame measures a link that is not fast, the broker is asked about every one: it answers
        at once, however busy the server is.
        """
        if self._in_time < _ASKED_EVERY or not (self.packs or self._uplink.learns_little(sent_bytes)):
            self._until_asked = 0
        self._until_asked -= 1
        if self._until_asked < 0:
            self._until_asked = _ASKED_EVERY - 1
            return False
        return True

    def _sent(self) -> None:
        """Note that one frame fewer is in flight."""
        self._sending -= 1
        if self._room_freed is not None and not self._room_freed.done():
            self._room_freed.set_result(None)
