"""Getting frames to the broker exactly once: live ones first, spooled ones in the room that is left."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Callable

from runtime_edge.base.worker import Compute
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import LinkError, SpoolError
from runtime_edge.formats.wire import Reply
from runtime_edge.transport.accounting import Accounting
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.bandwidth_probe import CONFIRMATIONS, confirming_bytes
from runtime_edge.transport.connection import FRAME_OVERHEAD_BYTES, Link
from runtime_edge.transport.frame_store import Outbox

_LOG = logging.getLogger(__name__)
_IDLE_S = 0.2
_LONGEST_PAUSE_S = 10.0


class Delivery:
    """Sends frames that are already in the spool, and takes them out of it once the broker has stored them."""

    def __init__(
        self,
        config: DeviceConfig,
        link: Link,
        outbox: Outbox,
        compute: Compute,
        accounting: Accounting,
        uplink: BandwidthEstimator,
    ) -> None:
        self._config, self._link, self._outbox, self._compute = config, link, outbox, compute
        self._accounting, self._uplink = accounting, uplink
        self._sending = 0
        # Devices that lost the same broker at the same moment must not all come back at the same moment.
        self._random = random.Random(f"{config.seed}.{config.device}.{link.boot}")  # noqa: S311
        self._closed = False
        self._room_made: asyncio.Future[None] | None = None
        self._to_replay = asyncio.Event()
        self._to_replay.set()

    @property
    def connected(self) -> bool:
        """Whether the link stands."""
        return self._link.connected

    def has_room(self) -> bool:
        """Whether another live frame may be sent now. From any thread."""
        return self._link.connected and self._sending < self._config.in_flight

    async def wait_for_room(self) -> None:
        """Until there is room, or until the link is gone."""
        while self._link.connected and not self.has_room():
            self._room_made = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._room_made}, timeout=_IDLE_S)

    def exchange(
        self,
        message_id: str,
        window: int,
        frame: bytes,
        deadline_s: float,
        on_answer: Callable[[Reply | None, float], None],
    ) -> None:
        """Send a claimed frame; call back with the server's answer, None when it has not come in time, and the seconds.

        The delivery goes on behind the caller's back until the broker has the frame or the attempt fails; then the
        frame stays spooled and is replayed.
        """
        started = time.monotonic()

        def answered(reply: Reply | None) -> None:
            if reply is None:
                self._uplink.timeout(deadline_s)
            on_answer(reply, time.monotonic() - started)

        self._link.expect(window, deadline_s, answered)
        self._send(message_id, window, frame)

    async def sound(self, frame_bytes: int, filler_bytes: int) -> None:
        """Learn of the link what a frame does not tell that has just been sent, unless others are under way.

        At its heels, and not once it is acknowledged: on a long way, that would be a decision later.
        """
        if not filler_bytes or self._sending != 1 or not self._link.connected:
            return
        before = frame_bytes + FRAME_OVERHEAD_BYTES
        self._sending += 1  # no replay in between: it would look like a slow link
        try:
            told = await self._sounded(filler_bytes)
            for confirmations in range(CONFIRMATIONS):
                if not self._uplink.asks_confirmation(filler_bytes, told[1], confirmations):
                    break
                before, filler_bytes = 0, confirming_bytes(filler_bytes)
                told = await self._sounded(filler_bytes)
            self._uplink.observe_pair(filler_bytes, *told, before)
        except LinkError as exc:
            _LOG.debug("%s", exc)
        finally:
            self._sent()

    async def _sounded(self, filler_bytes: int) -> tuple[float, float]:
        told = await self._link.sound(bytes(filler_bytes))
        self._accounting.bytes_sent += filler_bytes
        return told

    def replay_soon(self) -> None:
        """Something may lie in the spool that nobody is sending."""
        self._to_replay.set()

    async def replay_forever(self) -> None:
        """Send what lies in the spool, oldest first, while no live frame needs the link."""
        pause_s = _IDLE_S
        while not self._closed:
            await self._to_replay.wait()
            try:
                taken = self._link.connected and await self._replay_one()
            except SpoolError as exc:
                _LOG.warning("%s", exc)
                taken = False
                self.replay_soon()
            if taken is False and self._link.connected:
                await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = _IDLE_S
            if taken is False:
                await asyncio.sleep(_IDLE_S)

    async def drain(self, patience_s: float) -> None:
        """Wait until the spool is empty and nothing is under way, at most `patience_s`."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if not self._sending and await self._compute.run(self._outbox.depth) == 0:
                return
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Give up what is under way; what is spooled stays so."""
        self._closed = True
        await self._compute.run(self._outbox.give_up)

    async def _replay_one(self) -> bool | None:
        """Send the oldest spooled frame; whether the broker took it, None when there is none."""
        while self._sending and self._link.connected:
            await asyncio.sleep(0.01)
        self._to_replay.clear()
        oldest = await self._compute.run(self._outbox.claim_oldest)
        if oldest is None:
            return None
        self._to_replay.set()
        started = time.monotonic()
        decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._send(oldest.message_id, oldest.index, oldest.payload, decided)
        taken = await decided
        self._accounting.replayed += taken
        # Half the link's time is left to live frames.
        await asyncio.sleep((time.monotonic() - started) * taken)
        return taken

    def _send(self, message_id: str, window: int, frame: bytes, decided: asyncio.Future[bool] | None = None) -> None:
        """Try once to have the broker store a claimed frame, and settle it when it has or has not: `decided`."""
        # An answer to an earlier run's window would be taken for this run's window of that number.
        awaited = window if self._outbox.is_own(message_id) else None
        sent_bytes, alone = len(frame) + FRAME_OVERHEAD_BYTES, not self._sending
        on_stored = functools.partial(self._on_stored, message_id, sent_bytes, alone, decided)
        self._sending += 1
        try:
            if alone:
                if self._uplink.asks_round_trip(sent_bytes):
                    self._link.probe(self._uplink.observe_round_trip)
                self._uplink.sending(sent_bytes)
            self._link.send(message_id, awaited, frame, on_stored, self._config.ack_timeout_s)
        except LinkError as exc:
            on_stored(exc)

    def _on_stored(
        self,
        message_id: str,
        sent_bytes: int,
        alone: bool,
        decided: asyncio.Future[bool] | None,
        said: float | LinkError,
    ) -> None:
        """The broker has a frame after so many seconds, or not; once closed, what was under way is settled already."""
        self._sent()
        if self._closed:
            return
        delivered = not isinstance(said, LinkError)
        self._outbox.settle_soon(message_id, delivered)
        if decided is not None and not decided.done():
            decided.set_result(delivered)
        if isinstance(said, LinkError):
            _LOG.debug("%s: %s", message_id, said)
            self.replay_soon()
            return
        self._accounting.stage_ms["publish"].observe(said * 1e3)
        self._accounting.bytes_sent += sent_bytes
        if alone:
            self._uplink.observe(sent_bytes, said)

    def _sent(self) -> None:
        """One less is under way."""
        self._sending -= 1
        if self._room_made is not None and not self._room_made.done():
            self._room_made.set_result(None)
