"""One device: starts its parts, feeds them windows, reports its status and shuts them down.

A window is on disk before it is sent and leaves the disk when the broker has stored it. Tables and bundles swap
between windows. What happens to a window stands in `runtime_edge.device.pipeline`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from runtime_edge.base.aio import cancel_all, finish_unless
from runtime_edge.base.files import locked
from runtime_edge.base.logs import LastTroubles
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import Capture
from runtime_edge.device.device_memory import DeviceMemory
from runtime_edge.device.pipeline import Pipeline
from runtime_edge.device.sinks import EventSink, Sink
from runtime_edge.errors import SscError
from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Credentials
from runtime_edge.formats.manifest import Manifest
from runtime_edge.formats.wire import Reply
from runtime_edge.service.heartbeat import Heartbeat
from runtime_edge.service.metrics import MetricsServer
from runtime_edge.service.sd_notify import Notifier
from runtime_edge.service.status import DeviceStatus, EncoderStatus, UplinkStatus, lock_file
from runtime_edge.system import health
from runtime_edge.transport.accounting import Accounting
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.connection import Connection
from runtime_edge.transport.delivery import Delivery
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.privacy import drop_below_floor
from runtime_edge.transport.spool import Spool
from runtime_edge.updates.bundle_store import has_bundle
from runtime_edge.updates.head_updater import HeadUpdater
from runtime_edge.updates.learner_sync import LearnerSync
from runtime_edge.updates.table_updater import make_splitter
from runtime_edge.updates.updater import Updater

_LOG = logging.getLogger(__name__)
_BRIEFLY_S, _FIRST_S = 1.0, 5.0


class Device:
    """Runs one source through one encoder until the source ends or `stop` is called."""

    def __init__(self, config: DeviceConfig, sinks: Sequence[Sink], notifier: Notifier | None = None) -> None:
        self.config = config
        self._notifier = notifier or Notifier({})
        self.boot = subjects.new_boot()
        self.accounting = Accounting()
        self._sinks = list(sinks)
        self._since = time.time()
        self._troubles = LastTroubles()
        self._stopping = asyncio.Event()
        self._worker = Worker()
        self._uplink = BandwidthEstimator()
        self._connection: Connection | None = None
        self._updater: Updater
        self._frame_store: FrameStore
        self._delivery: Delivery | None = None
        self._pipeline: Pipeline
        self._learner_sync: LearnerSync
        self._capture: Capture
        self._heartbeat: Heartbeat
        self._metrics: MetricsServer | None = None

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
            with self._updater.clean_exit():
                await self._process_source()
                if self._delivery is not None:
                    await finish_unless(self._stopping, self._delivery.drain(self.config.drain_s))
                    await self._delivery.close()  # what is still in flight is decided before the report
            ended = "it was stopped" if self._stopping.is_set() else "its source has ended"
            return await self._report()
        except SscError as exc:
            ended = str(exc)
            raise
        finally:
            await cancel_all(background)
            if hasattr(self, "_pipeline"):
                await self._pipeline.settle()
                await self._learner_sync.share()
            if hasattr(self, "_heartbeat"):
                await self._heartbeat.last(ended)
            await self._close()

    async def _start(self, background: list[asyncio.Task[None]]) -> None:
        config = self.config
        if config.broker is not None:
            credentials = Credentials(config.credentials, config.tls_ca, config.tls_cert, config.tls_key)
            self._connection = Connection(config.broker, config.device, self.boot, self._on_late_reply, credentials)
            background.append(asyncio.create_task(self._connection.connect_with_retries()))
            # With a bundle on the disk there is no need to wait: a newer one is swapped in later.
            await asyncio.wait(
                background, timeout=_BRIEFLY_S if config.bundle or has_bundle(config.state) else _FIRST_S
            )
        self._updater = Updater(config, self._connection, self._worker, self.accounting)
        engine, table = await self._updater.first()
        info = engine.bundle.manifest.info
        head_updater = HeadUpdater(config, self._connection, self._updater.reports, info)
        self._frame_store = await self._worker.run(self._open_frame_store, engine.bundle.manifest)
        self.accounting.generation_start = self.accounting.generation_end = engine.generation
        if self._connection is not None:
            self._delivery = Delivery(
                config, self._connection, self._frame_store, self._worker, self.accounting, self._uplink
            )
            background.append(asyncio.create_task(self._delivery.replay_forever()))
            self._sinks.append(
                EventSink(self._connection.publish, config.device, config.events, config.event_threshold)
            )
            await head_updater.follow()
        self._learner_sync = LearnerSync(config, self._connection)
        splitter = make_splitter(engine.bundle, table, config)
        splitter.learn(self._learner_sync.learner_for(table))
        front_end = info.front_end
        self._capture = Capture(config, front_end.sample_rate, front_end.window_samples, front_end.hop_samples)
        self._pipeline = Pipeline(
            config=config,
            boot=self.boot,
            accounting=self.accounting,
            worker=self._worker,
            updater=self._updater,
            engine=engine,
            splitter=splitter,
            memory=DeviceMemory(info.encoder.embedding_dim),
            learner_sync=self._learner_sync,
            head_updater=head_updater,
            frame_store=self._frame_store,
            delivery=self._delivery,
            uplink=self._uplink,
            sinks=self._sinks,
            window_done=self._capture.window_done,
        )
        await self._updater.follow(self._pipeline.apply_updates)
        self._heartbeat = Heartbeat(config.state, self._status, self._connection, self._notifier)
        if config.metrics_port is not None:
            heartbeat = self._heartbeat
            self._metrics = MetricsServer(config.metrics_port, lambda: heartbeat.latest)
            _LOG.info("metrics on http://127.0.0.1:%d/metrics", self._metrics.port)
        background.append(asyncio.create_task(self._heartbeat.beat_forever()))
        background.append(asyncio.create_task(self._learner_sync.share_forever()))
        self._notifier.ready()

    async def _process_source(self) -> None:
        await self._capture.read(self._pipeline.run_window, self._stopping, self.config.max_windows)
        await self._pipeline.settle()

    async def _report(self) -> dict[str, Any]:
        vitals = health()
        return {
            "device": self.config.device,
            "target": self.config.target,
            "boot": self.boot,
            **await self._worker.run(self._frame_store.report),
            "memory_mb": round(vitals.rss_mb, 1),
            "temperature_c": vitals.temperature_c,
            "runtime": self._pipeline.engine.prefix.backend.name,
            "state": self._pipeline.splitter.state,
            **self._updater.status(),
        }

    async def _status(self, ended: str | None) -> DeviceStatus:
        """How the device is now."""
        report, connection, uplink, pipeline = await self._report(), self._connection, self._uplink, self._pipeline
        return DeviceStatus(
            device=self.config.device,
            target=self.config.target,
            pid=os.getpid(),
            since=self._since,
            written=time.time(),
            written_monotonic=time.monotonic(),
            ended=ended,
            encoder=EncoderStatus(
                generation=pipeline.engine.generation,
                bundle=pipeline.engine.bundle.digest,
                variant=pipeline.engine.prefix.variant,
                runtime=pipeline.engine.prefix.backend.name,
                table=pipeline.splitter.table.created_by,
                on_trial=bool(report["on_trial"]),
            ),
            cut=pipeline.cut,
            uncertainty=pipeline.memory.uncertainty,
            cpu=pipeline.cpu.load(),
            uplink=UplinkStatus(
                broker=self.config.broker,
                connected=connection is not None and connection.connected,
                bandwidth_mbps=uplink.uplink_mbits,
                rtt_ms=uplink.rtt_ms,
                loss=uplink.loss,
            ),
            spool=await self._worker.run(self._frame_store.state),
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
        if self._connection is not None:
            await self._connection.close()
        if hasattr(self, "_frame_store"):
            await self._worker.run(self._frame_store.close)
        self._worker.shutdown()
        for sink in self._sinks:
            sink.close()

    def _on_late_reply(self, reply: Reply) -> None:
        self._pipeline.late_reply(reply)

    def _open_frame_store(self, manifest: Manifest) -> FrameStore:
        spool = Spool(self.config.state / "spool.db", self.config.spool_bytes, self.config.power_safe)
        self.accounting.inherited_dropped = drop_below_floor(spool, self.config.state, manifest, self.config.min_cut)
        return FrameStore(spool, f"{self.config.device}.{self.boot}.", self.accounting)
