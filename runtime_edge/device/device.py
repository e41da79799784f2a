"""One device: starts its parts, feeds them windows, reports its status and shuts them down.

A window is on disk before it is sent and leaves the disk when the broker has stored it. Tables and bundles swap
between windows. `runtime_edge.device.runner` and `runtime_edge.device.pipeline` process each window.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from runtime_edge.base.aio import cancel_all, finish_unless
from runtime_edge.base.files import locked, make_private
from runtime_edge.base.logs import LastTroubles
from runtime_edge.base.text import shown
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import Capture, CapturedWindow
from runtime_edge.device.clip_keeper import ClipKeeper, clip_keeper
from runtime_edge.device.clip_lender import lend_clips
from runtime_edge.device.device_memory import DeviceMemory
from runtime_edge.device.event_sink import EventSink, end_events
from runtime_edge.device.pipeline import Pipeline
from runtime_edge.device.reporter import Reporter
from runtime_edge.device.runner import WindowRunner
from runtime_edge.device.sinks import Sink, all_gone, have_room, written
from runtime_edge.errors import SscError
from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import Credentials
from runtime_edge.formats.manifest import FrontEndInfo, Manifest
from runtime_edge.sd_notify import Notifier
from runtime_edge.service.heartbeat import Heartbeat
from runtime_edge.service.metrics import MetricsServer
from runtime_edge.service.namesake import NamesakeWatch
from runtime_edge.service.status import lock_file
from runtime_edge.transport.accounting import Accounting, LoopCounts
from runtime_edge.transport.bandwidth import BandwidthEstimator
from runtime_edge.transport.budgets import Budgets
from runtime_edge.transport.connection import Connection
from runtime_edge.transport.delivery import Delivery
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.privacy import drop_below_floor
from runtime_edge.transport.protocol import Transport
from runtime_edge.transport.spool.spool import Spool
from runtime_edge.updates.adaptation_updater import AdaptationUpdater
from runtime_edge.updates.bundle_store import has_bundle
from runtime_edge.updates.first_bundle import start_updater
from runtime_edge.updates.head_updater import HeadUpdater
from runtime_edge.updates.learner_sync import LearnerSync
from runtime_edge.updates.table_updater import forbidden_payloads
from runtime_edge.updates.updater import Updater

_LOG = logging.getLogger(__name__)
_BRIEFLY_S, _FIRST_S = 1.0, 5.0
_LOOK_S = 0.02


@asynccontextmanager
async def connected(config: DeviceConfig) -> AsyncIterator[Connection | None]:
    """A connection that has had a moment to connect and keeps trying in the background; None without a broker."""
    if config.broker is None:
        yield None
        return
    credentials = Credentials(config.credentials, config.tls_ca, config.tls_cert, config.tls_key)
    connection = Connection(config.broker, config.device, credentials)
    connecting = asyncio.create_task(connection.connect_with_retries())
    try:
        # With a bundle on the disk there is no need to wait: a newer one is swapped in later.
        patience_s = _BRIEFLY_S if config.bundle or has_bundle(config.state) else _FIRST_S
        await asyncio.wait({connecting}, timeout=patience_s)
        yield connection
    finally:
        await cancel_all([connecting])
        await connection.close()


Connect = Callable[[DeviceConfig], AbstractAsyncContextManager[Transport | None]]


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of a device that has started."""

    budgets: Budgets
    updater: Updater
    capture: Capture
    delivery: Delivery | None
    pipeline: Pipeline
    learner_sync: LearnerSync
    reporter: Reporter
    heartbeat: Heartbeat


class Device:
    """Runs one source through one encoder until the source ends or `stop` is called.

    Args:
        config: the device's settings.
        sinks: where results go; closed at the end.
        notifier: reports to systemd.
        connect: opens the connection to the broker, if there is one.
    """

    def __init__(
        self,
        config: DeviceConfig,
        sinks: Sequence[Sink],
        notifier: Notifier | None = None,
        connect: Connect = connected,
    ) -> None:
        self._config, self._sinks, self._notifier = config, list(sinks), notifier or Notifier({})
        self._connect = connect
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End after the current window; spooled frames stay on disk."""
        self._stopping.set()

    async def run(self) -> dict[str, Any]:
        """Run to the end; returns the report. Raises SscError if it cannot start."""
        state = self._config.state
        make_private(state)
        with locked(lock_file(state), "another device runs from this state directory"), LastTroubles() as troubles:
            async with AsyncExitStack() as closing:
                return await self._work(await self._start(closing, troubles))

    async def _work(self, parts: _Parts) -> dict[str, Any]:
        """Process the source, shut down, and return the report."""
        background = [asyncio.create_task(parts.heartbeat.beat_forever())]
        background.append(asyncio.create_task(parts.learner_sync.share_forever()))
        background.append(asyncio.create_task(parts.budgets.watch_forever()))
        if parts.delivery is not None:
            background.append(asyncio.create_task(parts.delivery.replay_forever()))
        ended = "it failed"
        try:
            self._notifier.ready()
            with parts.updater.clean_exit():
                await self._process_source(parts)
            ended = "it was stopped" if self._stopping.is_set() else "its source has ended"
            return await parts.reporter.report()
        except SscError as exc:
            ended = shown(str(exc))
            raise
        finally:
            await cancel_all(background)
            await parts.pipeline.settle()
            await end_events(self._sinks)
            if parts.pipeline.clips is not None:
                await parts.pipeline.clips.written()
            await parts.learner_sync.share()
            await parts.heartbeat.last(ended)

    async def _process_source(self, parts: _Parts) -> None:
        """Process every window, then send what the spool holds."""
        loop, offline = asyncio.get_running_loop(), self._config.broker is None

        def run_when_wanted(window: CapturedWindow) -> None:
            """Run the window if anybody wants results. In the worker's thread."""
            if offline and all_gone(self._sinks):
                loop.call_soon_threadsafe(self.stop)  # nobody would receive any result
            if not self._config.realtime:  # files can wait
                while not parts.capture.wait(lambda: have_room(self._sinks), _LOOK_S):
                    pass
            parts.pipeline.run_window(window)

        live = self._config.realtime and not offline
        run_window = parts.pipeline.run_window if live else run_when_wanted
        await parts.capture.read(run_window, self._stopping, self._config.max_windows)
        await parts.pipeline.settle()
        await finish_unless(
            self._stopping, written(self._sinks, self._config.drain_s if self._config.realtime else None)
        )
        if parts.delivery is not None:
            await finish_unless(self._stopping, parts.delivery.drain(self._config.drain_s))
            await parts.delivery.close()  # the outcome of frames still in flight is settled before the report

    async def _start(self, closing: AsyncExitStack, troubles: LastTroubles) -> _Parts:
        """Start the parts one after the other; `closing` ends them in reverse order."""
        config, boot, since, counts = self._config, subjects.new_boot(), time.time(), LoopCounts()
        closing.callback(self._close_sinks)
        worker = closing.enter_context(Worker())
        connection = await closing.enter_async_context(self._connect(config))
        budgets = Budgets(config, connection)
        closing.callback(budgets.save)
        updater = await start_updater(config, connection, worker, counts, budgets)
        engine, table = updater.engine, updater.table
        info = engine.bundle.manifest.info
        head_updater = HeadUpdater(config, connection, updater.reports, info)
        accounting = Accounting()
        frame_store = await worker.run(_open_frame_store, config, boot, engine.bundle.manifest, accounting)
        closing.push_async_callback(worker.run, frame_store.close)
        delivery = None
        uplink = BandwidthEstimator(shared=lambda: math.inf if connection is None else connection.since_fetch_s)
        if connection is not None:
            delivery = Delivery(config, connection, frame_store, worker, counts, uplink)
            closing.push_async_callback(delivery.close)
            await head_updater.follow()
        clips = self._tell_of_labels(connection, info.front_end)
        learner_sync = LearnerSync(config, connection)
        learner, memory = learner_sync.learner_for(table), DeviceMemory(info.encoder.embedding_dim)
        runner = WindowRunner(config, boot, engine, table, learner, frame_store, accounting, connection is not None,
                              memory.judge, head_updater.entropy)  # fmt: skip
        front_end = info.front_end
        capture = Capture(config, front_end.sample_rate, front_end.window_samples, front_end.hop_samples, worker)
        pipeline = Pipeline(
            config=config, worker=worker, runner=runner, updater=updater,
            memory=memory, learner_sync=learner_sync, head_updater=head_updater,
            delivery=delivery, uplink=uplink, sinks=self._sinks, counts=counts, window_done=capture.window_done,
            clips=clips,
        )  # fmt: skip
        if connection is not None:
            connection.on_late_reply(pipeline.late_reply)
        await updater.follow(pipeline.apply_updates)
        await AdaptationUpdater(config, connection, updater).follow()
        metrics = self._metrics(closing)
        namesakes = None if connection is None else NamesakeWatch(connection, config.device, boot)
        reporter = Reporter(
            config=config, boot=boot, since=since, worker=worker, runner=runner, pipeline=pipeline, updater=updater,
            capture=capture, connection=connection, budgets=budgets, namesakes=namesakes,
            metrics_port=None if metrics is None else metrics.port, troubles=troubles,
        )  # fmt: skip
        heartbeat = Heartbeat(config.state, reporter.status, connection, self._notifier, metrics, namesakes)
        return _Parts(
            budgets=budgets, updater=updater, capture=capture, delivery=delivery, pipeline=pipeline,
            learner_sync=learner_sync, reporter=reporter, heartbeat=heartbeat,
        )  # fmt: skip

    def _tell_of_labels(self, connection: Transport | None, front_end: FrontEndInfo) -> ClipKeeper | None:
        """Add the sink that publishes labels going on and off; returns the keeper of clips, if wanted."""
        config, rate, hop = self._config, front_end.sample_rate, front_end.hop_samples
        clips = clip_keeper(config, rate, front_end.window_samples, hop)
        lend_clips(config, connection)
        if connection is not None or clips is not None:
            self._sinks.append(
                EventSink(
                    None if connection is None else connection.publish,
                    config.device,
                    config.events,
                    config.usual_rule,
                    config.label_rules,
                    hop / rate,
                    None if clips is None else clips.changed,
                )
            )
        return clips

    def _metrics(self, closing: AsyncExitStack) -> MetricsServer | None:
        if self._config.metrics_port is None:
            return None
        metrics = MetricsServer(self._config.metrics_port)
        closing.callback(metrics.close)
        _LOG.info("metrics on http://127.0.0.1:%d/metrics", metrics.port)
        return metrics

    def _close_sinks(self) -> None:
        for sink in self._sinks:
            sink.close()


def _open_frame_store(config: DeviceConfig, boot: str, manifest: Manifest, accounting: Accounting) -> FrameStore:
    spool = Spool(config.state / "spool.db", config.spool_bytes, config.power_safe)
    forbidden = forbidden_payloads(manifest, config)
    accounting.inherited_dropped = drop_below_floor(
        spool, config.state, manifest, config.min_cut, config.max_word_recognition, forbidden
    )
    return FrameStore(spool, f"{config.device}.{boot}.", accounting)
