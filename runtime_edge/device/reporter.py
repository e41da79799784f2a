"""A running device's status at one moment, and the report of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime_edge.base.histogram import Histogram
from runtime_edge.base.logs import LastTroubles
from runtime_edge.base.text import without_password
from runtime_edge.base.worker import Worker
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import Capture, CaptureState
from runtime_edge.device.event_sink import labels_on
from runtime_edge.device.pipeline import Pipeline
from runtime_edge.device.runner import RunnerState, WindowRunner
from runtime_edge.device.sinks import dropped
from runtime_edge.errors import installed_version
from runtime_edge.service.namesake import NamesakeWatch
from runtime_edge.service.status import DeviceStatus, EncoderStatus, UplinkStatus
from runtime_edge.system import Health, health
from runtime_edge.transport.accounting import merged
from runtime_edge.transport.budgets import Budgets, TrafficStatus
from runtime_edge.transport.protocol import Transport
from runtime_edge.updates.updater import Updater

_Key = TypeVar("_Key", bound=str)
_SOFTWARE = installed_version()
_MAX_TROUBLE = 200
"""Longest warning in a report, characters."""


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """Asks the worker's parts in its thread, and merges their answers with what the loop knows."""

    config: DeviceConfig
    boot: str
    since: float
    """Start of the run, seconds since the epoch."""
    worker: Worker
    runner: WindowRunner
    pipeline: Pipeline
    updater: Updater
    capture: Capture
    connection: Transport | None
    budgets: Budgets
    namesakes: NamesakeWatch | None
    metrics_port: int | None
    troubles: LastTroubles

    async def report(self) -> dict[str, Any]:
        """The run's accounting. Raises SpoolError."""
        return self._report(await self.worker.run(self.runner.state), health(), self.budgets.status())

    async def status(self, ended: str | None) -> DeviceStatus:
        """The device's status now; `ended`: why it is no longer running. Raises SpoolError."""
        (state, capture), vitals = await self.worker.run(self._worker_state), health()
        pipeline, uplink, traffic = self.pipeline, self.pipeline.uplink, self.budgets.status()
        return DeviceStatus(
            device=self.config.device,
            target=self.config.target,
            pid=os.getpid(),
            since=self.since,
            written=time.time(),
            written_monotonic=time.monotonic(),
            ended=ended,
            encoder=EncoderStatus(
                generation=state.generation,
                bundle=state.bundle,
                variant=state.variant,
                runtime=state.runtime,
                blocks=state.blocks,
                front_end=state.front_end,
                table=state.table,
                on_trial=bool(self.updater.status()["on_trial"]),
            ),
            cut=pipeline.cut,
            uncertainty=pipeline.memory.uncertainty,
            cpu=state.cpu,
            uplink=UplinkStatus(
                broker=None if self.config.broker is None else without_password(self.config.broker),
                connected=self.connection is not None and not self.connection.trouble,
                bandwidth_mbps=uplink.uplink_mbits,
                rtt_ms=uplink.rtt_ms,
                loss=uplink.loss,
            ),
            traffic=traffic,
            spool=state.spool,
            audio=capture.counters,
            source_silent_s=capture.silent_s,
            results_dropped=dropped(self.pipeline.sinks),
            namesake="" if self.namesakes is None else self.namesakes.found,
            health=vitals,
            metrics_port=self.metrics_port,
            report=self._report(state, vitals, traffic),
            # These are copies: another thread writes them down while the loop goes on counting.
            stage_ms={**state.stage_ms, **_copied(pipeline.counts.stage_ms)},
            cut_ms=_copied(pipeline.counts.cut_ms),
            troubles=self.troubles.newest_first(),
        )

    def _worker_state(self) -> tuple[RunnerState, CaptureState]:
        return self.runner.state(), self.capture.state()

    def _report(self, state: RunnerState, vitals: Health, traffic: TrafficStatus) -> dict[str, Any]:
        return {
            "device": self.config.device,
            "target": self.config.target,
            "boot": self.boot,
            **merged(state.report, self.pipeline.counts.report()),
            "memory_mb": round(vitals.rss_mb, 1),
            "temperature_c": vitals.temperature_c,
            "runtime": state.runtime,
            "state": state.splitter,
            "labels_on": labels_on(self.pipeline.sinks),
            "software": _SOFTWARE,
            "throttled": vitals.throttled,
            "trouble": troubles[0].message[:_MAX_TROUBLE] if (troubles := self.troubles.newest_first()) else None,
            **traffic_fields(traffic),
            **self.updater.status(),
        }


def traffic_fields(traffic: TrafficStatus) -> dict[str, Any]:
    """The traffic fields of the report, kept short because each report is traffic itself."""
    budgets = {"budget": traffic.budget, "update_budget": traffic.update_budget}
    told = {name: [one.mb_per_day, one.left_bytes] for name, one in budgets.items() if one is not None}
    rates = [[*rate.traffic, round(rate.seconds)] for rate in (traffic.hour, traffic.month)]
    return {"traffic": [list(traffic.run), *rates], **told, "events_withheld": traffic.withheld}


def _copied(times: Mapping[_Key, Histogram]) -> dict[_Key, Histogram]:
    return {key: histogram.copy() for key, histogram in times.items()}
