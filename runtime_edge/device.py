"""The device loop: source, splitter, prefix, frame, spool, link, reply, memory.

A window is on disk before it is sent and leaves the disk when the broker has stored it. Tables and bundles swap
between windows. While the link is down everything runs here and the frames wait in the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import numpy as np

from runtime_edge import subjects
from runtime_edge.accounting import Accounting
from runtime_edge.capture import Capture, Captured
from runtime_edge.config import DeviceConfig
from runtime_edge.delivery import Delivery
from runtime_edge.engine import Embedding, Engine, Step
from runtime_edge.errors import FrameError, SpoolError
from runtime_edge.labelling import Labelling
from runtime_edge.link import Link
from runtime_edge.memory import GaussianMemory
from runtime_edge.monitor import BandwidthEstimator, CpuMonitor, health
from runtime_edge.outbox import Outbox
from runtime_edge.results import EventSink, Sink
from runtime_edge.splitter import Decision, Splitter
from runtime_edge.spool import Spool
from runtime_edge.swap import Swap, make_splitter
from runtime_edge.table import LOCAL
from runtime_edge.tasks import cancel_all, finish_unless
from runtime_edge.underway import Underway
from runtime_edge.updates import has_bundle
from runtime_edge.wire import Reply

_LOG = logging.getLogger(__name__)
_PRESENCE_PERIOD_S = 5.0
_BRIEFLY_S, _FIRST_S = 1.0, 5.0
_T = TypeVar("_T")


class Device:
    """Runs one source through one encoder until the source ends or `stop` is called."""

    def __init__(self, config: DeviceConfig, sinks: Sequence[Sink]) -> None:
        self.config = config
        self.boot = secrets.token_hex(4)
        self.accounting = Accounting()
        self._sinks = list(sinks)
        self._cpu = CpuMonitor()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._taught: dict[int, None] = {}
        self._uncertainty: float | None = None
        # One thread computes and touches the spool, so buffers and the database have one user.
        self._compute = ThreadPoolExecutor(1, "compute")
        self._link: Link | None = None
        self._delivery: Delivery | None = None
        self._swap: Swap
        self._engine: Engine
        self._splitter: Splitter
        self._memory: GaussianMemory
        self._labelling: Labelling
        self._outbox: Outbox

    def stop(self) -> None:
        """End after the window being processed; spooled frames stay on disk."""
        self._stopping.set()

    async def run(self) -> dict[str, Any]:
        """Run to the end; returns the report. Raises SscError when it cannot start."""
        background: list[asyncio.Task[None]] = []
        try:
            await self._start(background)
            with self._swap.orderly():
                await self._process_source()
                if self._delivery is not None:
                    await finish_unless(self._stopping, self._delivery.drain(self.config.drain_s))
                    await self._delivery.close()  # what is still under way is decided before the report
            return await self._report()
        finally:
            await cancel_all(background)
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._close()

    async def _start(self, background: list[asyncio.Task[None]]) -> None:
        config = self.config
        config.state.mkdir(parents=True, exist_ok=True)
        if config.broker is not None:
            self._link = Link(config.broker, config.device, self.boot, self._late_reply)
            background.append(asyncio.create_task(self._link.connect_at_last()))
            # With something to run there is no need to wait: what is newer takes over later.
            await asyncio.wait(
                background, timeout=_BRIEFLY_S if config.bundle or has_bundle(config.state) else _FIRST_S
            )
        self._swap = Swap(config, self._link, self._compute, self.accounting)
        self._engine, table = await self._swap.first()
        self._splitter = make_splitter(self._engine.bundle, table, config)
        info = self._engine.bundle.manifest.info
        self._memory = GaussianMemory(dim=info.encoder.embedding_dim)
        self._labelling = Labelling(config, self._link, self.accounting, info)
        self._outbox = await self._in_compute(self._open_outbox)
        self.accounting.generation_start = self.accounting.generation_end = self._engine.generation
        if self._link is not None:
            self._delivery = Delivery(config, self._link, self._outbox, self._compute, self.accounting)
            background.append(asyncio.create_task(self._delivery.replay_forever()))
            background.append(asyncio.create_task(self._send_presence(self._link)))
            self._sinks.append(EventSink(self._link.publish, config.device, config.events, config.event_threshold))
            await self._swap.follow()
            await self._labelling.follow()

    async def _process_source(self) -> None:
        info = self._engine.bundle.manifest.info.front_end
        capture = Capture(self.config, info.sample_rate, info.window_samples, info.hop_samples)
        async with contextlib.aclosing(capture.windows(self._stopping)) as windows:
            count = 0
            async for window in windows:
                count += 1
                self.accounting.pcm16_bytes += 2 * info.hop_samples
                self._take_over()
                await self._process(window)
                if count == self.config.max_windows:
                    break
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take_over(self) -> None:
        """Install what has arrived since the last window."""
        engine, table = self._swap.take()
        if engine is not None:
            self._engine = engine
            self.accounting.generation_end = engine.generation
        if table is not None and table != self._splitter.table:
            if table.bundle_cuts == self._splitter.table.bundle_cuts:
                self._splitter.swap(table)
            else:
                self._splitter = make_splitter(self._engine.bundle, table, self.config)
            self.accounting.table_swaps += 1

    async def _process(self, window: Captured) -> None:
        uplink = self._delivery.uplink if self._delivery else BandwidthEstimator()
        cpu, bandwidth, rtt = self._cpu.load(), uplink.uplink_mbits, uplink.rtt_ms
        decision = self._splitter.choose(self._uncertainty, cpu, bandwidth, rtt)
        if self._link is None:
            decision = decision._replace(cut=LOCAL, probe=False)  # nobody to ship to
        self.accounting.probes += decision.probe
        engine, started = self._engine, time.monotonic()
        index = engine.last_cut if decision.cut == LOCAL else engine.cut_names.index(decision.cut)
        live = decision.cut != LOCAL and await self._has_room()
        step = await self._in_compute(self._run_window, engine, window, decision, index, live)
        device_ms = (time.monotonic() - started) * 1e3
        cut = engine.cut_names[index] if decision.cut != LOCAL else LOCAL
        underway = Underway(window, decision, cut, engine, step, cpu, bandwidth, rtt, device_ms)
        if step.embedding is not None:
            self._finish(underway, step.embedding, "device")
        if live:
            self._spawn(self._exchange(underway))

    def _run_window(self, engine: Engine, window: Captured, decision: Decision, cut: int, live: bool) -> Step:
        """In the compute thread: run, frame and spool."""
        uncertainty = self._splitter.uncertainty
        step = engine.run(window.samples, window.index, window.capture_time_ns, cut, uncertainty, not live)
        if decision.cut == LOCAL:
            self._outbox.keep_local()
        else:
            self._outbox.put(self._message_id(window), window.index, step.frame, uncertainty, claim=live)
        return step

    async def _has_room(self) -> bool:
        """Whether this window may be sent live. A source that does not run in real time waits for room."""
        if self._delivery is None:
            return False
        if not self.config.realtime:
            await self._delivery.wait_for_room()
        return self._delivery.room

    async def _exchange(self, underway: Underway) -> None:
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
            if reply.status == "retired":
                self._spawn(self._swap.recheck())
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
        underway: Underway,
        embedding: Embedding,
        where: str,
        network_ms: float = 0.0,
        server_ms: float = 0.0,
    ) -> None:
        uncertainty = self._teach(underway.window.index, embedding)
        result = underway.result(embedding, uncertainty, where, network_ms, server_ms)
        result = self._labelling.label(result, underway.engine.bundle.manifest.info, embedding)
        self.accounting.finished[where] += 1
        self.accounting.latency_ms[underway.cut].append(result.latency_ms)
        for sink in self._sinks:
            try:
                sink.put(result)
            except Exception as exc:
                # A full disk under the results, or a user's callback, must not end the capture.
                self._count_error(exc)

    async def _report(self) -> dict[str, Any]:
        vitals = health()
        return {
            "device": self.config.device,
            "target": self.config.target,
            "boot": self.boot,
            **await self._in_compute(self._outbox.report),
            "memory_mb": round(vitals.rss_mb, 1),
            "temperature_c": vitals.temperature_c,
            "runtime": self._engine.prefix.backend.name,
            **self._swap.status(),
        }

    async def _send_presence(self, link: Link) -> None:
        while True:
            if link.connected:
                with contextlib.suppress(SpoolError):
                    await link.put_presence(msgspec.json.encode(await self._report()))
            await asyncio.sleep(_PRESENCE_PERIOD_S)

    async def _close(self) -> None:
        if self._delivery is not None:
            await self._delivery.close()
        if self._link is not None:
            await self._link.close()
        if hasattr(self, "_outbox"):
            await self._in_compute(self._outbox.close)
        self._compute.shutdown()
        for sink in self._sinks:
            sink.close()

    def _open_outbox(self) -> Outbox:
        spool = Spool(self.config.state / "spool.db", self.config.spool_bytes)
        return Outbox(spool, f"{self.config.device}.{self.boot}.", self.accounting)

    def _message_id(self, window: Captured) -> str:
        return subjects.message_id(self.config.device, self.boot, window.index)

    def _count_error(self, exc: Exception) -> None:
        self.accounting.errors[type(exc).__name__] += 1
        _LOG.warning("%s", exc)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_compute(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._compute, call, *arguments)
