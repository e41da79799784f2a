"""The device loop: source, splitter, prefix, frame, spool, link, reply, memory.

A window is on disk before it is sent and leaves the disk when the broker has stored it. Tables and bundles swap
between windows. While the link is down everything runs here and the frames wait in the spool.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from runtime_edge import subjects
from runtime_edge.accounting import Accounting
from runtime_edge.capture import Capture, Captured
from runtime_edge.config import DeviceConfig
from runtime_edge.delivery import Delivery
from runtime_edge.engine import Embedding, Engine, Step
from runtime_edge.errors import FrameError, LinkError, SpoolError, SscError
from runtime_edge.link import Link
from runtime_edge.memory import GaussianMemory
from runtime_edge.monitor import BandwidthEstimator, CpuMonitor, health
from runtime_edge.results import Sink, WindowResult
from runtime_edge.splitter import Decision, Splitter
from runtime_edge.spool import Spool
from runtime_edge.swap import Swap
from runtime_edge.table import LOCAL, SplitterTable
from runtime_edge.wire import Reply

_LOG = logging.getLogger(__name__)
_PRESENCE_PERIOD_S = 5.0
_RECONNECT_S = 1.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Underway:
    """A window between its decision and its result."""

    window: Captured
    decision: Decision
    cut: str
    engine: Engine
    step: Step
    cpu: float
    bandwidth_mbps: float
    rtt_ms: float
    device_ms: float


class Device:
    """Runs one source through one encoder until the source ends or `stop` is called."""

    def __init__(self, config: DeviceConfig, sinks: Sequence[Sink]) -> None:
        self.config = config
        self.boot = secrets.token_hex(4)
        self.accounting = Accounting()
        self._sinks = sinks
        self._cpu = CpuMonitor()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._taught: dict[int, None] = {}
        self._uncertainty: float | None = None
        # One thread computes and touches the spool, so buffers and the database have one user.
        self._compute = ThreadPoolExecutor(1, "compute")
        self._link: Link | None = None
        self._delivery: Delivery | None = None
        self._engine: Engine
        self._splitter: Splitter
        self._memory: GaussianMemory
        self._spool: Spool

    def stop(self) -> None:
        """End after the window being processed; spooled frames stay on disk."""
        self._stopping.set()

    async def run(self) -> dict[str, Any]:
        """Run to the end; returns the report. Raises SscError when it cannot start."""
        background: list[asyncio.Task[None]] = []
        try:
            swap = await self._start(background)
            await self._process_source(swap)
            if self._delivery is not None and not self._stopping.is_set():
                await self._delivery.drain(self.config.drain_s)
            return await self._in_compute(self._report)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, *self._tasks, return_exceptions=True)
            await self._close()

    async def _start(self, background: list[asyncio.Task[None]]) -> Swap:
        config = self.config
        config.state.mkdir(parents=True, exist_ok=True)
        if config.broker is not None:
            self._link = Link(config.broker, config.device, self.boot, self._late_reply)
            background.append(asyncio.create_task(self._connect(self._link)))
            await asyncio.wait(background, timeout=5.0)
        swap = Swap(config, self._link, self._compute)
        self._engine, table = await swap.first()
        self._splitter = self._make_splitter(self._engine, table)
        self._memory = GaussianMemory(dim=self._engine.bundle.manifest.info.encoder.embedding_dim)
        self._spool = await self._in_compute(Spool, config.state / "spool.db", config.spool_bytes)
        self.accounting.generation_start = self.accounting.generation_end = self._engine.generation
        if self._link is not None:
            self._delivery = Delivery(config, self._link, self._spool, self._compute, self.accounting)
            background.append(asyncio.create_task(self._delivery.replay_forever()))
            background.append(asyncio.create_task(self._send_presence(self._link)))
            await swap.follow()
        return swap

    async def _connect(self, link: Link) -> None:
        """Until the first connection stands; a broker that is away at the start is no reason to stop."""
        while True:
            try:
                await link.connect()
                return
            except LinkError as exc:
                _LOG.info("%s", exc)
                await asyncio.sleep(_RECONNECT_S)

    async def _process_source(self, swap: Swap) -> None:
        info = self._engine.bundle.manifest.info.front_end
        capture = Capture(self.config, info.sample_rate, info.window_samples, info.hop_samples)
        async for window in capture.windows(self._stopping):
            self.accounting.captured += 1
            self.accounting.pcm16_bytes += 2 * info.hop_samples
            self._take_over(swap)
            await self._process(window)
            if self.config.max_windows and self.accounting.captured >= self.config.max_windows:
                break
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take_over(self, swap: Swap) -> None:
        """Install what has arrived since the last window. What does not fit is refused and counted."""
        engine, table = swap.take()
        try:
            if engine is not None:
                if engine.cut_names != self._engine.cut_names:
                    self._splitter = self._make_splitter(engine, table or self._splitter.table)
                self._engine = engine
                self.accounting.generation_end = engine.generation
            if table is not None and table != self._splitter.table:
                self._splitter.swap(table)
                self.accounting.table_swaps += 1
        except SscError as exc:
            self._count_error(exc)

    async def _process(self, window: Captured) -> None:
        uplink = self._delivery.uplink if self._delivery else BandwidthEstimator()
        cpu, bandwidth, rtt = self._cpu.load(), uplink.uplink_mbits, uplink.rtt_ms
        decision = self._splitter.choose(self._uncertainty, cpu, bandwidth, rtt)
        self.accounting.probes += decision.probe
        engine, started = self._engine, time.monotonic()
        index = engine.last_cut if decision.cut == LOCAL else engine.cut_names.index(decision.cut)
        live = decision.cut != LOCAL and await self._has_room()
        step = await self._in_compute(self._run_window, engine, window, decision, index, live)
        device_ms = (time.monotonic() - started) * 1e3
        cut = engine.cut_names[index] if decision.cut != LOCAL else LOCAL
        underway = _Underway(window, decision, cut, engine, step, cpu, bandwidth, rtt, device_ms)
        if step.embedding is not None:
            self._finish(underway, step.embedding, "device")
        if decision.cut == LOCAL:
            self.accounting.kept_local += 1
        elif live:
            self._spawn(self._exchange(underway))

    def _run_window(self, engine: Engine, window: Captured, decision: Decision, cut: int, live: bool) -> Step:
        """In the compute thread: run, frame and spool."""
        uncertainty = self._splitter.uncertainty
        step = engine.run(window.samples, window.index, window.capture_time_ns, cut, uncertainty, not live)
        if decision.cut != LOCAL and self._link is not None:
            message_id = self._message_id(window)
            if live and self._delivery is not None:
                self._delivery.claim(message_id)
            try:
                self._spool.put(message_id, window.index, step.frame, uncertainty)
            except SpoolError as exc:
                self._count_error(exc)
        return step

    async def _has_room(self) -> bool:
        """Whether this window may be sent live. A source that does not run in real time waits for room."""
        if self._delivery is None:
            return False
        if not self.config.realtime:
            await self._delivery.wait_for_room()
        return self._delivery.room

    async def _exchange(self, underway: _Underway) -> None:
        """Send one frame and finish the window with the server's answer or, past the deadline, without it."""
        assert self._delivery is not None
        window = underway.window
        deadline_s = max(self.config.deadline_s - underway.device_ms / 1e3, 0.05)
        reply, seconds = await self._delivery.exchange(
            self._message_id(window), window.index, underway.step.frame, deadline_s
        )
        if reply is not None:
            self._refresh_memory(reply)
        if underway.step.embedding is not None:
            return
        embedding = None if reply is None else self._embedding(reply)
        if embedding is not None and reply is not None:
            server_ms = min(reply.server_us / 1e3, seconds * 1e3)
            self._finish(underway, embedding, "server", seconds * 1e3 - server_ms, server_ms)
        else:
            embedding = await self._in_compute(underway.engine.embed, window.samples)
            self._finish(underway, embedding, "fallback", seconds * 1e3)

    def _late_reply(self, reply: Reply) -> None:
        """An answer after its deadline still teaches the memory, unless the window has taught it already."""
        embedding = self._embedding(reply)
        if embedding is not None and reply.window not in self._taught:
            self._teach(reply.window, embedding)
        self._refresh_memory(reply)

    def _embedding(self, reply: Reply) -> Embedding | None:
        """The (d,) float32 embedding of an answer; None when the server refused the frame."""
        if reply.status != "ok" or len(reply.embedding) != 2 * self._memory.dim:
            self.accounting.refused += reply.status != "ok"
            return None
        return np.frombuffer(reply.embedding, "<f2").astype(np.float32)

    def _refresh_memory(self, reply: Reply) -> None:
        if reply.mixture:
            try:
                self._memory.load_parameters(reply.mixture)
            except FrameError as exc:
                self._count_error(exc)

    def _teach(self, window: int, embedding: Embedding) -> float:
        self._taught[window] = None
        if len(self._taught) > 1024:
            self._taught.pop(next(iter(self._taught)))
        self._uncertainty = self._memory.update(embedding)
        return self._uncertainty

    def _finish(
        self,
        underway: _Underway,
        embedding: Embedding,
        where: str,
        network_ms: float = 0.0,
        server_ms: float = 0.0,
    ) -> None:
        latency_ms = underway.device_ms + network_ms + server_ms
        self.accounting.finished[where] += 1
        self.accounting.latency_ms[underway.cut].append(latency_ms)
        result = WindowResult(
            window=underway.window.index,
            time=underway.window.capture_time_ns / 1e9,
            embedding=[round(float(value), 5) for value in embedding],
            uncertainty=self._teach(underway.window.index, embedding),
            cut=underway.cut,
            encoding=underway.step.encoding,
            probe=underway.decision.probe,
            generation=underway.engine.generation,
            finished=where,
            latency_ms=round(latency_ms, 3),
            device_ms=round(underway.device_ms, 3),
            network_ms=round(network_ms, 3),
            server_ms=round(server_ms, 3),
            frame_bytes=0 if underway.cut == LOCAL else len(underway.step.frame),
            bandwidth_mbps=round(underway.bandwidth_mbps, 4),
            rtt_ms=round(underway.rtt_ms, 3),
            cpu=round(underway.cpu, 4),
        )
        for sink in self._sinks:
            sink.put(result)

    def _report(self) -> dict[str, Any]:
        vitals = health()
        return {
            "device": self.config.device,
            "target": self.config.target,
            "boot": self.boot,
            **self.accounting.report(self._spool.depth(), self._spool.counters().dropped),
            "memory_mb": round(vitals.rss_mb, 1),
            "temperature_c": vitals.temperature_c,
            "runtime": self._engine.prefix.backend.name,
        }

    async def _send_presence(self, link: Link) -> None:
        while True:
            if link.connected:
                await link.put_presence(msgspec.json.encode(await self._in_compute(self._report)))
            await asyncio.sleep(_PRESENCE_PERIOD_S)

    async def _close(self) -> None:
        if self._link is not None:
            await self._link.close()
        if hasattr(self, "_spool"):
            await self._in_compute(self._spool.close)
        self._compute.shutdown()
        for sink in self._sinks:
            sink.close()

    def _make_splitter(self, engine: Engine, table: SplitterTable) -> Splitter:
        floor = 0
        if self.config.min_cut is not None:
            floor = engine.bundle.manifest.cut_named(self.config.min_cut).index
        return Splitter(table, engine.cut_names, min_cut_index=floor, seed=self.config.seed)

    def _message_id(self, window: Captured) -> str:
        return subjects.message_id(self.config.device, self.boot, window.index)

    def _count_error(self, exc: SscError) -> None:
        self.accounting.errors[type(exc).__name__] += 1
        _LOG.warning("%s", exc)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_compute(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._compute, call, *arguments)
