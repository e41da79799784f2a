"""The path of one window through the event loop: send its frame, await the reply, teach the memory, emit the result.

A window comes from the runner (`runtime_edge.device.runner`), which has chosen its cut, run its prefix and written its
frame to the spool. While the link is down the device runs the whole encoder and the frames wait in the spool.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.clip_keeper import ClipKeeper
from runtime_edge.device.device_memory import DeviceMemory
from runtime_edge.device.in_flight import InFlight, differs
from runtime_edge.device.runner import Situation, Update, WindowRunner
from runtime_edge.device.sinks import Sink
from runtime_edge.errors import FrameError
from runtime_edge.formats.results import WindowResult
from runtime_edge.formats.wire import Reply
from runtime_edge.inference.engine import Embedding, Engine
from runtime_edge.service.status import REFUSED_FOR_LONG, completes_none
from runtime_edge.transport.accounting import LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.bandwidth_probe import FillerAllowance, filler_bytes, probe_is_due
from runtime_edge.transport.delivery import Delivery
from runtime_edge.updates.head_updater import HeadUpdater
from runtime_edge.updates.learner_sync import LearnerSync
from runtime_edge.updates.updater import Updater

_LOG = logging.getLogger(__name__)
_SETTLING_S = 0.02
_MOST_STANDING = 64
"""How many windows are remembered whose first answer a late one from the server may still revise."""


@dataclass(kw_only=True)
class Pipeline:
    """Processes windows one by one and passes their results to the sinks, possibly out of order.

    Created in the device's loop, which owns its state; only `run_window` is called in the worker's thread.
    """

    config: DeviceConfig
    worker: Worker
    runner: WindowRunner
    """Owned by the worker: called only in its thread."""
    updater: Updater
    memory: DeviceMemory
    learner_sync: LearnerSync
    """Syncs what `--learn` has learnt for the splitter table."""
    head_updater: HeadUpdater
    delivery: Delivery | None
    """None without a broker."""
    uplink: BandwidthEstimator
    sinks: list[Sink]
    counts: LoopCounts
    window_done: Callable[[Exception | None], None]
    """Called in the loop when another window may come, or with the error that ends the device."""
    clips: ClipKeeper | None = None
    """Keeps clips of the sounds that labels are heard in, if wanted."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    cut: str | None = None
    """The cut of the latest window."""
    _unanswered: int = 0
    """Windows that wait for the server's answer or for their deadline."""
    _standing: dict[int, InFlight] = field(default_factory=dict)
    """Windows, by index, whose first answer stands because no other came in time; without their samples and frames."""
    _engine: Engine | None = None
    """The engine of the latest window."""
    _filler: FillerAllowance = field(default_factory=FillerAllowance)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def run_window(self, window: CapturedWindow) -> None:
        """In the worker's thread: run one window, then pass it to the event loop. Raises what running raises.

        It only reads the loop's state, one number at a time.
        """
        delivery, uplink = self.delivery, self.uplink
        connected = delivery is None or delivery.connected
        has_room = delivery is not None and connected and delivery.has_room()
        now = Situation(self.memory.uncertainty, uplink.uplink_mbits, uplink.rtt_ms, connected, has_room)
        self.worker.tell(self.loop, self._prefix_done, self.runner.run(window, now))

    def apply_updates(self) -> None:
        """Switch to a bundle or table that is ready, between two windows."""
        engine, table = self.updater.take_updates()
        if engine is not None or table is not None:
            learner = None if table is None else self.learner_sync.learner_for(table)
            self._spawn(self._install(Update(engine, table, learner)))

    async def settle(self) -> None:
        """Wait for the windows that are still in flight, once no more are run."""
        if self.delivery is not None:
            self.delivery.flush()
        while self._unanswered:
            await asyncio.sleep(_SETTLING_S)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def late_reply(self, reply: Reply) -> None:
        """Let a late answer teach the memory, unless the window already has, and revise an exit's answer.

        An answer that was not asked for reports a problem with a window, or changes to the mixture.
        """
        if reply.status == "ok" and not reply.embedding:
            self._count_answer(reply)
            embedding = None
        else:
            embedding = self._usable_embedding(reply)
        if embedding is not None:
            self.memory.teach_late(reply.window, embedding)
            self._answered_late(reply, embedding)
        self._refresh_memory(reply)

    def _answered_late(self, reply: Reply, embedding: Embedding) -> None:
        in_flight = self._standing.pop(reply.window, None)
        if in_flight is None or in_flight.step.first is None:
            return
        waited_ms = max(0.0, (time.monotonic() - in_flight.window.ready_at) * 1e3 - in_flight.device_ms)
        server_ms = min(reply.server_us / 1e3, waited_ms)
        uncertainty = in_flight.step.first.uncertainty
        self._revise(
            in_flight, self._result(in_flight, embedding, uncertainty, "server", waited_ms - server_ms, server_ms)
        )

    async def _install(self, update: Update) -> None:
        try:
            await self.worker.run(self.runner.install, update)
            if update.engine is not None:
                self.counts.refused_in_a_row = 0  # it counted for the bundle before
        except Exception as exc:
            self.window_done(exc)

    def _prefix_done(self, in_flight: InFlight) -> None:
        """Take a window that has arrived in the event loop: finish it, or send its frame."""
        try:
            if self.clips is not None:
                self.clips.hear(in_flight.window)
            self._send_on(in_flight)
            self.updater.window_ran(in_flight.engine.bundle)
            self.apply_updates()
        except Exception as exc:
            self.window_done(exc)
            return
        if self.delivery is None or self.config.realtime:
            self.window_done(None)
        else:  # a source that does not run in real time waits for room
            self._spawn(self._window_done_with_room(self.delivery))

    def _send_on(self, in_flight: InFlight) -> None:
        self.cut = in_flight.cut
        if in_flight.engine is not self._engine:
            self._engine = in_flight.engine
            self._standing.clear()  # they would keep the earlier engine in memory
        self.counts.cuts[in_flight.cut] += 1
        if in_flight.step.first is not None:
            first = in_flight.step.first
            self._give(self._result(in_flight, first.embedding, first.uncertainty, first.by), in_flight)
            if not in_flight.live:  # kept: no other answer will come
                self._learn(in_flight, first.embedding, None)
        if in_flight.step.embedding is not None:
            self._finish(in_flight, in_flight.step.embedding, "device")
        if self.delivery is None:
            return
        if in_flight.live:
            self._exchange(self.delivery, in_flight)
        else:
            self.delivery.replay_soon()
        self._probe_bandwidth(self.delivery, in_flight)

    async def _window_done_with_room(self, delivery: Delivery) -> None:
        await delivery.wait_for_room()
        self.window_done(None)

    def _exchange(self, delivery: Delivery, in_flight: InFlight) -> None:
        """Send one frame; the window is finished with the server's answer or, after the deadline, without it."""
        if in_flight.step.embedding is not None:
            delivery.report(in_flight.message_id, in_flight.window.index, in_flight.step.frame, in_flight.hop_s)
            return
        deadline_s = max(self.config.deadline_s - in_flight.device_ms / 1e3, 0.05)
        answered = functools.partial(self._answered, in_flight)
        self._unanswered += 1
        frame = in_flight.step.frame
        delivery.exchange(in_flight.message_id, in_flight.window.index, frame, deadline_s, answered, in_flight.hop_s)

    def _probe_bandwidth(self, delivery: Delivery, in_flight: InFlight) -> None:
        """If a faster link would change the cut, and looking costs little beside that, measure the link."""
        sent = len(in_flight.step.frame) if in_flight.live and not delivery.packs else 0
        worth, since_s = in_flight.filler_worth, time.monotonic() - self.uplink.measured_at
        due = probe_is_due(since_s, sent > 0, in_flight.capped)
        filler = filler_bytes(self.uplink.uplink_mbits, worth, in_flight.hop_s, sent) if due else 0
        if self._filler.allows(filler, worth):
            self._spawn(delivery.bandwidth_probe(sent, filler))

    def _answered(self, in_flight: InFlight, reply: Reply | None, seconds: float) -> None:
        """Handle the server's answer to a frame, or None after its deadline."""
        self._unanswered -= 1
        embedding = None
        if reply is not None:
            self.counts.stage_ms["reply"].observe(seconds * 1e3)
            self._refresh_memory(reply)
            embedding = self._usable_embedding(reply)
        if embedding is not None and reply is not None:
            server_ms = min(reply.server_us / 1e3, seconds * 1e3)
            self._finish(in_flight, embedding, "server", seconds * 1e3 - server_ms, server_ms)
        elif in_flight.step.first is not None:  # the first answer stands
            self._learn(in_flight, in_flight.step.first.embedding, None)
            self._keep_standing(in_flight)
        else:
            self._spawn(self._fall_back(in_flight, seconds))

    def _keep_standing(self, in_flight: InFlight) -> None:
        """Remember a window whose first answer stands; the server's may still come."""
        if in_flight.engine is not self._engine:
            return
        if len(self._standing) >= _MOST_STANDING:
            self._standing.pop(next(iter(self._standing)))
        window = msgspec.structs.replace(in_flight.window, samples=in_flight.window.samples[:0].copy())
        step = msgspec.structs.replace(in_flight.step, frame=b"")
        self._standing[window.index] = msgspec.structs.replace(in_flight, window=window, step=step)

    async def _fall_back(self, in_flight: InFlight, seconds: float) -> None:
        """Run the rest of the encoder on the device, because the server did not answer in time."""
        embedding = await self.worker.run(self.runner.embed, in_flight)
        if embedding is not None:
            self._finish(in_flight, embedding, "fallback", seconds * 1e3)

    def _usable_embedding(self, reply: Reply) -> Embedding | None:
        """The (d,) float32 embedding of an answer; None after acting on a refusal."""
        self._count_answer(reply)
        embedding = reply.vector(self.memory.mixture.dim) if reply.status == "ok" else None
        if embedding is None:
            if reply.status in ("retired", "foreign"):
                self._spawn(self.updater.recheck())
            # Between two windows: a restart during one would be forgotten at its end.
            self._spawn(self.worker.run(self.runner.restart_stream))
        return embedding

    def _count_answer(self, reply: Reply) -> None:
        self.counts.answered(reply.status == "ok")
        if reply.status == "foreign" and self.counts.refused_in_a_row in (1, REFUSED_FOR_LONG):
            row, finished = self.counts.refused_in_a_row, self.counts.finished
            if words := completes_none(self.config.state, {"refused_in_a_row": row, "finished": finished}):
                _LOG.warning("%s", words)

    def _refresh_memory(self, reply: Reply) -> None:
        if reply.mixture:
            try:
                self.memory.load(reply.mixture)
            except FrameError as exc:
                self._count_error(exc)

    def _finish(
        self,
        in_flight: InFlight,
        embedding: Embedding,
        where: str,
        network_ms: float = 0.0,
        server_ms: float = 0.0,
    ) -> None:
        uncertainty = self._learn(in_flight, embedding, None if where == "device" else network_ms + server_ms)
        result = self._result(in_flight, embedding, uncertainty, where, network_ms, server_ms)
        if in_flight.step.first is None:
            self._give(result, in_flight)
        else:
            self._revise(in_flight, result)

    def _revise(self, in_flight: InFlight, result: WindowResult) -> None:
        """Publish the server's result after the first one, if the two differ."""
        first = in_flight.step.first
        assert first is not None, "the device has answered"
        said = self._result(in_flight, first.embedding, first.uncertainty, first.by)
        if differs(said, result, self.config.revise_above):
            self.counts.revised += 1
            self._put(result)

    def _learn(self, in_flight: InFlight, embedding: Embedding, answer_ms: float | None) -> float:
        """Teach the memory and the table from a window whose last answer is known; returns its uncertainty."""
        uncertainty = self.memory.teach(in_flight.window.index, embedding)
        if in_flight.learner is not None:
            in_flight.learner.finished(in_flight.window.index, uncertainty, in_flight.device_ms, answer_ms)
        return uncertainty

    def _result(
        self,
        in_flight: InFlight,
        embedding: Embedding,
        uncertainty: float,
        where: str,
        network_ms: float = 0.0,
        server_ms: float = 0.0,
    ) -> WindowResult:
        result = in_flight.result(embedding, uncertainty, where, network_ms, server_ms)
        at = in_flight.cut if where == "exit" else None
        return self.head_updater.label(result, in_flight.engine.bundle.manifest.info, embedding, at)

    def _give(self, result: WindowResult, in_flight: InFlight) -> None:
        """Give a window's first answer to the sinks."""
        self.counts.finish(in_flight.cut, result.finished, result.latency_ms)
        self._put(result)

    def _put(self, result: WindowResult) -> None:
        for sink in self.sinks:
            try:
                sink.put(result)
            except Exception as exc:
                # Neither a full disk nor a user's callback must end the capture.
                self._count_error(exc)

    def _count_error(self, exc: Exception) -> None:
        self.counts.errors[type(exc).__name__] += 1
        _LOG.warning("%s", exc)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
