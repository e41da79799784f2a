"""The path of one window: choose a cut, run the prefix, frame, spool, await the reply, update the memory, emit the
result.

Everything up to the spool happens in the capture thread, the rest in the event loop. While the link is down the device
runs the whole encoder and the frames wait in the spool.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.device_memory import DeviceMemory
from runtime_edge.device.in_flight import InFlight
from runtime_edge.device.sinks import Sink
from runtime_edge.errors import FrameError
from runtime_edge.formats import subjects
from runtime_edge.formats.records.table import LOCAL, SplitterTable
from runtime_edge.formats.wire import Reply
from runtime_edge.inference.engine import Embedding, Engine, PrefixResult
from runtime_edge.policy.reward import Conditions
from runtime_edge.policy.splitter import Decision, Splitter
from runtime_edge.policy.surroundings import Surroundings
from runtime_edge.system import CpuMonitor
from runtime_edge.transport.accounting import Accounting
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.bandwidth_probe import filler_bytes
from runtime_edge.transport.delivery import Delivery
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.updates.head_updater import HeadUpdater
from runtime_edge.updates.learner_sync import LearnerSync
from runtime_edge.updates.table_updater import make_splitter
from runtime_edge.updates.updater import Updater

_LOG = logging.getLogger(__name__)
_SETTLING_S = 0.02


@dataclass(kw_only=True)
class Pipeline:
    """Processes windows one by one and passes their results to the sinks, possibly out of order.

    Made in the device's loop.
    """

    config: DeviceConfig
    boot: str
    accounting: Accounting
    worker: Worker
    updater: Updater
    engine: Engine
    splitter: Splitter
    memory: DeviceMemory
    """The memory and what it says of a window."""
    learner_sync: LearnerSync
    """Of the splitter table, with `--learn`."""
    head_updater: HeadUpdater
    frame_store: FrameStore
    delivery: Delivery | None
    """None without a broker."""
    uplink: BandwidthEstimator
    sinks: list[Sink]
    window_done: Callable[[Exception | None], None]
    """Called in the loop when another window may come, or with what ends the device."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    cpu: CpuMonitor = field(default_factory=CpuMonitor)
    surroundings: Surroundings = field(default_factory=Surroundings)
    cut: str | None = None
    """Of the latest window."""
    _started: int = 0
    _received: int = 0
    """Windows that the loop has; `_started` is counted in the capture thread."""
    _unanswered: int = 0
    """Windows that wait for the server's answer or their deadline."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def run_window(self, window: CapturedWindow) -> None:
        """Run one window in the calling thread (always the same one), then pass it to the event loop.

        Raises what running raises.
        """
        self._started += 1
        try:
            run = self.worker.run_here(self._run, window)
        except BaseException:
            self._started -= 1
            raise
        self.loop.call_soon_threadsafe(self._prefix_done, *run)

    def apply_updates(self) -> None:
        """Switch to a bundle or table that is ready, between two windows."""
        engine, table = self.updater.take_updates()
        if engine is not None or table is not None:
            self._spawn(self._apply(engine, table))

    async def settle(self) -> None:
        """Wait for the windows that are still in flight."""
        while self._received < self._started or self._unanswered:
            await asyncio.sleep(_SETTLING_S)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def late_reply(self, reply: Reply) -> None:
        """An answer after its deadline still teaches the memory, unless the window has taught it already."""
        embedding = self._usable_embedding(reply)
        if embedding is not None:
            self.memory.teach_late(reply.window, embedding)
        self._refresh_memory(reply)

    async def _apply(self, engine: Engine | None, table: SplitterTable | None) -> None:
        try:
            await self.worker.run(self._install, engine, table)
        except Exception as exc:
            self.window_done(exc)

    def _install(self, engine: Engine | None, table: SplitterTable | None) -> None:
        if engine is not None:
            self.engine = engine
            self.accounting.generation_end = engine.generation
        if table is not None and table != self.splitter.table:
            if table.bundle_cuts == self.splitter.table.bundle_cuts:
                self.splitter.swap(table)
            else:
                self.splitter = make_splitter(self.engine.bundle, table, self.config)
            self.splitter.learn(self.learner_sync.learner_for(table))
            self.accounting.table_swaps += 1

    def _run(self, window: CapturedWindow) -> tuple[InFlight, bool]:
        """Choose, run, frame and spool; and whether the frame is to be sent at once."""
        self.accounting.pcm16_bytes += 2 * self.engine.bundle.manifest.info.front_end.hop_samples
        self.accounting.stage_ms["wait"].observe((time.monotonic() - window.ready_at) * 1e3)
        cpu, bandwidth, rtt = self.cpu.load(), self.uplink.uplink_mbits, self.uplink.rtt_ms
        connected = self.delivery is None or self.delivery.connected
        extra = self.surroundings.now()
        decision = self.splitter.choose(self.memory.uncertainty, cpu, bandwidth, rtt, connected=connected, extra=extra)
        if self.delivery is None or self.config.min_cut == LOCAL:
            decision = decision._replace(cut=LOCAL, explored=False)  # nobody to ship to, or nothing may be shipped
        self.accounting.explorations += decision.explored
        engine, started = self.engine, time.monotonic()
        index = engine.last_cut if decision.cut == LOCAL else engine.cut_names.index(decision.cut)
        live = decision.cut != LOCAL and self.delivery is not None and self.delivery.has_room()
        if self.splitter.learner is not None and (live or index == engine.last_cut):  # otherwise more than that is run
            at = Conditions(self.splitter.uncertainty, cpu, bandwidth, rtt)
            self.splitter.learner.decided(window.index, decision.row, decision.action, at)
        step = self._frame(engine, window, decision, index, live)
        device_ms = (time.monotonic() - started) * 1e3
        cut = engine.cut_names[index] if decision.cut != LOCAL else LOCAL
        question = self.splitter.mbps_in_question()
        return InFlight(window, decision, question, cut, engine, step, cpu, bandwidth, rtt, device_ms), live

    def _frame(self, engine: Engine, window: CapturedWindow, decision: Decision, cut: int, live: bool) -> PrefixResult:
        uncertainty = self.splitter.uncertainty
        step = engine.run(window.samples, window.index, window.capture_time_ns, cut, uncertainty, not live)
        stages = self.accounting.stage_ms
        stages["prefix"].observe(step.prefix_ms)
        if decision.cut == LOCAL:
            self.frame_store.keep_local()
        else:
            stages["encode"].observe(step.encode_ms)
            started = time.perf_counter()
            self.frame_store.put(self._message_id(window), window.index, step.frame, uncertainty, claim=live)
            stages["spool"].observe((time.perf_counter() - started) * 1e3)
        return step

    def _prefix_done(self, in_flight: InFlight, live: bool) -> None:
        """A window has arrived in the event loop: finish it, or send its frame."""
        self._received += 1
        try:
            self._send_on(in_flight, live)
            self.updater.window_ran(in_flight.engine.bundle)
            self.apply_updates()
        except Exception as exc:
            self.window_done(exc)
            return
        if self.delivery is None or self.config.realtime:
            self.window_done(None)
        else:  # a source that does not run in real time waits for room
            self._spawn(self._window_done_with_room(self.delivery))

    def _send_on(self, in_flight: InFlight, live: bool) -> None:
        self.cut = in_flight.cut
        self.accounting.cuts[in_flight.cut] += 1
        if in_flight.step.embedding is not None:
            self._finish(in_flight, in_flight.step.embedding, "device")
        if live:
            self._exchange(in_flight)
        elif self.delivery is not None:
            self.delivery.replay_soon()

    async def _window_done_with_room(self, delivery: Delivery) -> None:
        await delivery.wait_for_room()
        self.window_done(None)

    def _exchange(self, in_flight: InFlight) -> None:
        """Send one frame; the window is finished with the server's answer or, past the deadline, without it."""
        assert self.delivery is not None
        window = in_flight.window
        deadline_s = max(self.config.deadline_s - in_flight.device_ms / 1e3, 0.05)
        answered = functools.partial(self._answered, in_flight)
        self._unanswered += 1
        self.delivery.exchange(self._message_id(window), window.index, in_flight.step.frame, deadline_s, answered)
        self._bandwidth_probe(in_flight.mbps_in_question, len(in_flight.step.frame))

    def _answered(self, in_flight: InFlight, reply: Reply | None, seconds: float) -> None:
        """The server's answer to a frame, or None past its deadline."""
        self._unanswered -= 1
        embedding, has_own = None, in_flight.step.embedding is not None
        if reply is not None:
            self.accounting.stage_ms["reply"].observe(seconds * 1e3)
            self._refresh_memory(reply)
            if not has_own or reply.status != "ok":
                embedding = self._usable_embedding(reply)
        if embedding is not None and reply is not None:
            server_ms = min(reply.server_us / 1e3, seconds * 1e3)
            self._finish(in_flight, embedding, "server", seconds * 1e3 - server_ms, server_ms)
        elif not has_own:
            self._spawn(self._fall_back(in_flight, seconds))

    async def _fall_back(self, in_flight: InFlight, seconds: float) -> None:
        """The server did not answer in time, so the device runs the rest of the encoder."""
        embedding = await self.worker.run(in_flight.engine.embed, in_flight.window.samples)
        if embedding is not None:
            self._finish(in_flight, embedding, "fallback", seconds * 1e3)

    def _bandwidth_probe(self, mbps_in_question: float | None, frame_bytes: int) -> None:
        """Behind a frame, run a bandwidth probe if a faster link would change the cut."""
        assert self.delivery is not None
        table = self.splitter.table
        if table.limits.mb_per_hour is not None:
            return
        if filler := filler_bytes(self.uplink.uplink_mbits, mbps_in_question, table.hop_s, frame_bytes):
            self._spawn(self.delivery.bandwidth_probe(frame_bytes, filler))

    def _usable_embedding(self, reply: Reply) -> Embedding | None:
        """The (d,) float32 embedding of an answer, or None after acting on a refusal."""
        embedding = reply.vector(self.memory.mixture.dim) if reply.status == "ok" else None
        if embedding is None:
            self.accounting.refused += reply.status != "ok"
            if reply.status in ("retired", "foreign"):
                self._spawn(self.updater.recheck())
            self._spawn(self.worker.run(self._restart_stream))
        return embedding

    def _restart_stream(self) -> None:
        """Between two windows: a restart during one would be forgotten at its end."""
        self.engine.restart_stream()

    def _refresh_memory(self, reply: Reply) -> None:
        if reply.mixture:
            try:
                self.memory.mixture.load_parameters(reply.mixture)
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
        uncertainty = self.memory.teach(in_flight.window.index, embedding)
        if self.splitter.learner is not None:
            answer_ms = None if where == "device" else network_ms + server_ms
            self.splitter.learner.finished(in_flight.window.index, uncertainty, in_flight.device_ms, answer_ms)
        result = in_flight.result(embedding, uncertainty, where, network_ms, server_ms)
        result = self.head_updater.label(result, in_flight.engine.bundle.manifest.info, embedding)
        self.accounting.finish(in_flight.cut, where, result.latency_ms)
        for sink in self.sinks:
            try:
                sink.put(result)
            except Exception as exc:
                # A full disk under the results, or a user's callback, must not end the capture.
                self._count_error(exc)

    def _message_id(self, window: CapturedWindow) -> str:
        return subjects.message_id(self.config.device, self.boot, window.index)

    def _count_error(self, exc: Exception) -> None:
        self.accounting.errors[type(exc).__name__] += 1
        _LOG.warning("%s", exc)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
