"""Getting frames to the broker exactly once: live ones first, spooled ones in the room that is left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from runtime_edge.accounting import Accounting
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import LinkError, SpoolError
from runtime_edge.link import FRAME_OVERHEAD_BYTES, Link
from runtime_edge.monitor import BandwidthEstimator
from runtime_edge.spool import Spool
from runtime_edge.tasks import cancel_all
from runtime_edge.wire import Reply

_LOG = logging.getLogger(__name__)
_IDLE_S = 0.2
_T = TypeVar("_T")


class Delivery:
    """Sends frames that are already in the spool, and takes them out of it once the broker has stored them."""

    def __init__(
        self, config: DeviceConfig, link: Link, spool: Spool, executor: Executor, accounting: Accounting
    ) -> None:
        self.uplink = BandwidthEstimator()
        self._config, self._link, self._spool, self._executor = config, link, spool, executor
        self._accounting = accounting
        self._own = f"{config.device}.{link.boot}."
        self._claimed: set[str] = set()
        self._sending = 0
        self._tasks: set[asyncio.Task[bool]] = set()

    @property
    def room(self) -> bool:
        """Whether another live frame may be sent now."""
        return self._link.connected and self._sending < self._config.in_flight

    async def wait_for_room(self) -> None:
        """Until `room`, or until the link is gone."""
        while self._link.connected and not self.room:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_IDLE_S, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(0.01)  # what is under way is a replay

    def claim(self, message_id: str) -> None:
        """Keep the replay from sending a frame that is about to be sent live; call before it is spooled."""
        self._claimed.add(message_id)

    async def exchange(
        self, message_id: str, window: int, frame: bytes, deadline_s: float
    ) -> tuple[Reply | None, float]:
        """Send a claimed frame; the server's answer, or None when it has not come in `deadline_s`, and the seconds.

        The delivery goes on behind the caller's back until the broker has the frame or the attempt fails; then the
        frame stays spooled and is replayed.
        """
        started = time.monotonic()
        answer = self._link.expect(window)
        task = asyncio.create_task(self._send(message_id, window, frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            reply = await asyncio.wait_for(answer, deadline_s)
        except asyncio.TimeoutError:
            self._link.forget(window)
            self.uplink.timeout(deadline_s)
            return None, time.monotonic() - started
        return reply, time.monotonic() - started

    async def replay_forever(self) -> None:
        """Send what lies in the spool, oldest first, while no live frame needs the link."""
        while True:
            try:
                progress = self._link.connected and await self._replay()
            except SpoolError as exc:
                _LOG.warning("%s", exc)
                progress = False
            if not progress:
                await asyncio.sleep(_IDLE_S)

    async def drain(self, patience_s: float) -> None:
        """Wait until the spool is empty and nothing is under way, at most `patience_s`."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if not self._sending and await self._run(self._spool.depth) == 0:
                return
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Give up what is under way; it stays spooled."""
        await cancel_all(self._tasks)

    async def _replay(self) -> bool:
        """Send a few spooled frames; whether there were any and the broker took them."""
        stored = await self._run(self._spool.oldest, self._config.in_flight + 8)
        waiting = [item for item in stored if item.message_id not in self._claimed]
        for item in waiting:
            while self._sending and self._link.connected:
                await asyncio.sleep(0.01)
            self.claim(item.message_id)
            started = time.monotonic()
            if not await self._send(item.message_id, item.index, item.payload):
                return False
            self._accounting.replayed += 1
            # Half the link's time is left to live frames.
            await asyncio.sleep(time.monotonic() - started)
        return bool(waiting)

    async def _send(self, message_id: str, window: int, frame: bytes) -> bool:
        """Publish until the broker has stored the frame; False when it has not, and then the frame stays spooled."""
        own = message_id.startswith(self._own)
        self._sending += 1
        alone = self._sending == 1
        try:
            # An answer to an earlier run's window would be taken for this run's window of that number.
            awaited = window if own else None
            seconds = await self._link.deliver(message_id, awaited, frame, self._config.ack_timeout_s)
            if alone:
                self.uplink.observe(len(frame) + FRAME_OVERHEAD_BYTES, seconds)
            await self._run(self._spool.ack, [message_id])
        except LinkError as exc:
            _LOG.debug("%s", exc)
            return False
        finally:
            self._sending -= 1
            self._claimed.discard(message_id)
        self._accounting.acked += own
        self._accounting.inherited -= not own
        self._accounting.bytes_sent += len(frame) + FRAME_OVERHEAD_BYTES
        return True

    async def _run(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)
