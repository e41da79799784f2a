"""The device loop: source, splitter, prefix, frame, spool, link, reply, memory.

A window is on disk before it is sent and leaves the disk when the broker has stored it. Tables and bundles swap
between windows. While the link is down everything runs here and the frames wait in the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from runtime_edge import subjects
from runtime_edge.accounting import Accounting
from runtime_edge.capture import Capture, Captured
from runtime_edge.config import DeviceConfig
from runtime_edge.credentials import Credentials
from runtime_edge.delivery import Delivery
from runtime_edge.engine import Embedding, Engine, Step
from runtime_edge.errors import FrameError, SscError
from runtime_edge.files import locked
from runtime_edge.heartbeat import Heartbeat
from runtime_edge.labelling import Labelling
from runtime_edge.learner import Learner
from runtime_edge.link import Link
from runtime_edge.logs import LastTroubles
from runtime_edge.metrics import MetricsServer
from runtime_edge.monitor import BandwidthEstimator, CpuMonitor, health
from runtime_edge.notify import Notifier
from runtime_edge.outbox import Outbox
from runtime_edge.privacy import drop_below_floor
from runtime_edge.results import EventSink, Sink
from runtime_edge.splitter import Decision, Splitter
from runtime_edge.spool import Spool
from runtime_edge.status import Encoder, Status, Uplink, lock_file
from runtime_edge.swap import Swap, make_splitter
from runtime_edge.table import LOCAL
from runtime_edge.tasks import cancel_all, finish_unless
from runtime_edge.underway import Underway
from runtime_edge.updates import has_bundle
from runtime_edge.wire import Reply

_LOG = logging.getLogger(__name__)
_BRIEFLY_S, _FIRST_S = 1.0, 5.0
_T = TypeVar("_T")


class Device:
    """Runs one source through one encoder until the source ends or `stop` is called."""

    def __init__(self, config: DeviceConfig, sinks: Sequence[Sink], notifier: Notifier | None = None) -> None:
        self.config = config
        self._notifier = notifier or Notifier({})
        self.boot = secrets.token_hex(4)
        self.accounting = Accounting()
        self._sinks = list(sinks)
        self._cpu = CpuMonitor()
        self._uplink = BandwidthEstimator()
        self._cut: str | None = None
        self._since = time.time()
        self._troubles = LastTroubles()
        self._heartbeat: Heartbeat
        self._metrics: MetricsServer | None = None
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # One thread computes and touches the spool, so buffers and the database have one user.
        self._compute = ThreadPoolExecutor(1, "compute")
        self._link: Link | None = None
        self._delivery: Delivery | None = None
        self._swap: Swap
        self._engine: Engine
        self._splitter: Splitter
        self._learner: Learner
        self._capture: Capture
        self._labelling: Labelling
        self._outbox: Outbox

    def stop(self) -> None:
        """End after the window being processed; spooled frames stay on disk."""
        self._stopping.set()

    async def run(self) -> dict[str, Any]:
        """Run to the end; returns the report. Raises SscError when it cannot start."""
        self.config.state.mkdir(parents=True, exist_ok=True)
        with locked(lock_file(self.config.state), "another device runs from this state directory"), self._troubles:
            return await self._run()

    async def _run(self) -> dict[str, Any]:
        background: list[asyncio.Task[None]] = []
        ended = "it failed"
        try:
            await self._start(background)
            with self._swap.orderly():
                await self._process_source()
                if self._delivery is not None:
                    await finish_unless(self._stopping, self._delivery.drain(self.config.drain_s))
                    await self._delivery.close()  # what is still under way is decided before the report
            ended = "it was stopped" if self._stopping.is_set() else "its source has ended"
            return await self._report()
        except SscError as exc:
            ended = str(exc)
            raise
        finally:
            await cancel_all(background)
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if hasattr(self, "_heartbeat"):
                await self._heartbeat.last(ended)
            await self._close()

    async def _start(self, background: list[asyncio.Task[None]]) -> None:
        config = self.config
        if config.broker is not None:
            credentials = Credentials(config.credentials, config.tls_ca, config.tls_cert, config.tls_key)
            self._link = Link(config.broker, config.device, self.boot, self._late_reply, credentials)
            background.append(asyncio.create_task(self._link.connect_at_last()))
            # With something to run there is no need to wait: what is newer takes over later.
            await asyncio.wait(
                background, timeout=_BRIEFLY_S if config.bundle or has_bundle(config.state) else _FIRST_S
            )
        self._swap = Swap(config, self._link, self._compute, self.accounting)
        self._engine, table = await self._swap.first()
        self._splitter = make_splitter(self._engine.bundle, table, config)
        info = self._engine.bundle.manifest.info
        self._learner = Learner(info.encoder.embedding_dim)
        self._labelling = Labelling(config, self._link, self.accounting, info)
        self._outbox = await self._in_compute(self._open_outbox)
        self.accounting.generation_start = self.accounting.generation_end = self._engine.generation
        if self._link is not None:
            self._delivery = Delivery(config, self._link, self._outbox, self._compute, self.accounting, self._uplink)
            background.append(asyncio.create_task(self._delivery.replay_forever()))
            self._sinks.append(EventSink(self._link.publish, config.device, config.events, config.event_threshold))
            await self._swap.follow()
            await self._labelling.follow()
        front_end = info.front_end
        self._capture = Capture(config, front_end.sample_rate, front_end.window_samples, front_end.hop_samples)
        self._heartbeat = Heartbeat(config.state, self._status, self._link, self._notifier)
        if config.metrics_port is not None:
            heartbeat = self._heartbeat
            self._metrics = MetricsServer(config.metrics_port, lambda: heartbeat.latest)
            _LOG.info("metrics on http://127.0.0.1:%d/metrics", self._metrics.port)
        background.append(asyncio.create_task(self._heartbeat.beat_forever()))
        self._notifier.ready()

    async def _process_source(self) -> None:
        info = self._engine.bundle.manifest.info.front_end
        async with contextlib.aclosing(self._capture.windows(self._stopping)) as windows:
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
        self.accounting.stage_ms["wait"].observe((time.monotonic() - window.ready_at) * 1e3)
        cpu, bandwidth, rtt = self._cpu.load(), self._uplink.uplink_mbits, self._uplink.rtt_ms
        decision = self._splitter.choose(self._learner.uncertainty, cpu, bandwidth, rtt)
        if self._link is None or self.config.min_cut == LOCAL:
            decision = decision._replace(cut=LOCAL, probe=False)  # nobody to ship to, or nothing may be shipped
        self.accounting.probes += decision.probe
        engine, started = self._engine, time.monotonic()
        index = engine.last_cut if decision.cut == LOCAL else engine.cut_names.index(decision.cut)
        live = decision.cut != LOCAL and await self._has_room()
        step = await self._in_compute(self._run_window, engine, window, decision, index, live)
        device_ms = (time.monotonic() - started) * 1e3
        cut = engine.cut_names[index] if decision.cut != LOCAL else LOCAL
        self._cut = cut
        self.accounting.cuts[cut] += 1
        underway = Underway(window, decision, cut, engine, step, cpu, bandwidth, rtt, device_ms)
        if step.embedding is not None:
            self._finish(underway, step.embedding, "device")
        if live:
            self._spawn(self._exchange(underway))

    def _run_window(self, engine: Engine, window: Captured, decision: Decision, cut: int, live: bool) -> Step:
        """In the compute thread: run, frame and spool."""
        uncertainty = self._splitter.uncertainty
        step = engine.run(window.samples, window.index, window.capture_time_ns, cut, uncertainty, not live)
        stages = self.accounting.stage_ms
        stages["prefix"].observe(step.prefix_ms)
        if decision.cut == LOCAL:
            self._outbox.keep_local()
        else:
            stages["encode"].observe(step.encode_ms)
            started = time.perf_counter()
            self._outbox.put(self._message_id(window), window.index, step.frame, uncertainty, claim=live)
            stages["spool"].observe((time.perf_counter() - started) * 1e3)
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
            self.accounting.stage_ms["reply"].observe(seconds * 1e3)
            self._refresh_memory(reply)
        if underway.step.embedding is not None:
            return
        embedding = None if reply is None else self._embedding(reply)
        if embedding is not None and reply is not None:
            server_ms = min(reply.server_us / 1e3, seconds * 1e3)
            self._finish(underway, embedding, "server", seconds * 1e3 - server_ms, server_ms)
        else:
            embedding = await self._in_compute(underway.engine.embed, window.samples)
            if embedding is not None:
                self._finish(underway, embedding, "fallback", seconds * 1e3)

    def _late_reply(self, reply: Reply) -> None:
        """An answer after its deadline still teaches the memory, unless the window has taught it already."""
        embedding = self._embedding(reply)
        if embedding is not None:
            self._learner.teach_late(reply.window, embedding)
        self._refresh_memory(reply)

    def _embedding(self, reply: Reply) -> Embedding | None:
        """The (d,) float32 embedding of an answer; None when the server refused the frame."""
        if reply.status != "ok" or len(reply.embedding) != 2 * self._learner.memory.dim:
            self.accounting.refused += reply.status != "ok"
            if reply.status == "retired":
                self._spawn(self._swap.recheck())
            return None
        return np.frombuffer(reply.embedding, "<f2").astype(np.float32)

    def _refresh_memory(self, reply: Reply) -> None:
        if reply.mixture:
            try:
                self._learner.memory.load_parameters(reply.mixture)
            except FrameError as exc:
                self._count_error(exc)

    def _finish(
        self,
        underway: Underway,
        embedding: Embedding,
        where: str,
        network_ms: float = 0.0,
        server_ms: float = 0.0,
    ) -> None:
        uncertainty = self._learner.teach(underway.window.index, embedding)
        result = underway.result(embedding, uncertainty, where, network_ms, server_ms)
        result = self._labelling.label(result, underway.engine.bundle.manifest.info, embedding)
        self.accounting.finish(underway.cut, where, result.latency_ms)
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

    async def _status(self, ended: str | None) -> Status:
        """How the device is now."""
        report, link, uplink = await self._report(), self._link, self._uplink
        return Status(
            device=self.config.device,
            target=self.config.target,
            pid=os.getpid(),
            since=self._since,
            written=time.time(),
            written_monotonic=time.monotonic(),
            ended=ended,
            encoder=Encoder(
                generation=self._engine.generation,
                bundle=self._engine.bundle.digest,
                variant=self._engine.prefix.variant,
                runtime=self._engine.prefix.backend.name,
                table=self._splitter.table.created_by,
                on_trial=bool(report["on_trial"]),
            ),
            cut=self._cut,
            uncertainty=self._learner.uncertainty,
            cpu=self._cpu.load(),
            uplink=Uplink(
                broker=self.config.broker,
                connected=link is not None and link.connected,
                bandwidth_mbps=uplink.uplink_mbits,
                rtt_ms=uplink.rtt_ms,
                loss=uplink.loss,
            ),
            spool=await self._in_compute(self._outbox.state),
            audio=dataclasses.replace(self._capture.counters),
            source_silent_s=self._capture.silent_s,
            health=health(),
            metrics_port=None if self._metrics is None else self._metrics.port,
            report=report,
            stage_ms={**self.accounting.stage_ms},
            cut_ms={**self.accounting.cut_ms},
            troubles=self._troubles.newest_first(),
        )

    async def _close(self) -> None:
        if self._delivery is not None:
            await self._delivery.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._link is not None:
            await self._link.close()
        if hasattr(self, "_outbox"):
            await self._in_compute(self._outbox.close)
        self._compute.shutdown()
        for sink in self._sinks:
            sink.close()

    def _open_outbox(self) -> Outbox:
        spool = Spool(self.config.state / "spool.db", self.config.spool_bytes, self.config.power_safe)
        manifest = self._engine.bundle.manifest
        self.accounting.inherited_dropped = drop_below_floor(spool, self.config.state, manifest, self.config.min_cut)
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
