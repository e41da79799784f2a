"""A device's status as Prometheus metrics, on loopback only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from runtime_edge.base.prometheus import counters, gauge, histograms, info, require, serve
from runtime_edge.errors import UsageError
from runtime_edge.service.status import DeviceStatus

if TYPE_CHECKING:
    from prometheus_client import Metric

_PREFIX = "ssc_edge_"


class MetricsServer:
    """Answers `GET /metrics` on 127.0.0.1 in a thread of its own until closed.

    Args:
        port: the port to use; 0 takes a free one.

    Raises:
        MissingExtra: prometheus-client is not installed.
        UsageError: the port is taken.
    """

    def __init__(self, port: int) -> None:
        require()
        self.latest: DeviceStatus | None = None
        """The newest status, which is what gets served."""
        try:
            self._server, self._thread = serve(port, self._families)
        except OSError as exc:
            raise UsageError(f"--metrics-port {port}: {exc.strerror}; give another one, or 0 for any") from None
        self.port = self._server.server_port

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _families(self) -> Iterable[Metric]:
        status = self.latest
        return () if status is None else metrics(status)


def metrics(status: DeviceStatus) -> Iterator[Metric]:
    """Every metric of a status. Labels are stages, reasons, cuts of the bundle and names of errors: all are bounded."""
    described = {"device": status.device, "target": status.target, "bundle": status.encoder.bundle}
    described |= {"variant": status.encoder.variant, "runtime": status.encoder.runtime}
    yield info(_PREFIX + "device", "What runs.", described)
    for name, text, value in _gauges(status):
        if value is not None:
            yield gauge(_PREFIX + name, text, value)
    for name, text, label, counts in _counters(status):
        yield counters(_PREFIX + name, text, label, counts)
    latencies, stages = status.cut_ms.items(), status.stage_ms.items()
    yield histograms(_PREFIX + "latency_seconds", "From a window's end to its embedding, by cut.", "cut", latencies)
    yield histograms(_PREFIX + "stage_seconds", "Time of one step of a window's way.", "stage", stages)


def _gauges(status: DeviceStatus) -> Iterator[tuple[str, str, float | None]]:
    report, uplink, spool, vitals = status.report, status.uplink, status.spool, status.health
    yield "generation", "Of the bundle that runs.", status.encoder.generation
    yield "on_trial", "Whether the bundle still has to prove itself.", status.encoder.on_trial
    yield "uncertainty", "Of the latest window, 0 to 1.", status.uncertainty
    yield "cpu_load", "Load of all processors, 0 to 1.", status.cpu
    yield "connected", "Whether the broker is reached.", uplink.connected
    yield "uplink_bytes_per_second", "Estimated bandwidth to the broker.", uplink.bandwidth_mbps * 1e6 / 8
    yield "rtt_seconds", "Estimated round trip to the broker.", uplink.rtt_ms / 1e3
    yield "loss_ratio", "Share of the last frames that were not answered in time.", uplink.loss
    for name, budget in (("budget", status.traffic.budget), ("update_budget", status.traffic.update_budget)):
        if budget is not None:
            yield f"{name}_left_bytes", "That may pass now; below 0: owed.", budget.left_bytes
    yield "held", "Whether nothing is sent, since the budget is used up.", status.traffic.held_until is not None
    yield "update_waits", "Whether an update waits for a budget.", report.get("update_waits") is not None
    yield "spool_frames", "Frames that wait on the disk.", spool.frames
    yield "spool_bytes", "Bytes that wait on the disk.", spool.bytes
    yield "spool_limit_bytes", "Bytes the spool may hold.", spool.limit_bytes
    yield "windows_lost", "Windows that are nowhere; not 0 means a fault of the device.", report["windows_lost"]
    yield "temperature_celsius", "Hottest sensor of the processor.", vitals.temperature_c
    yield "throttled", "Whether the processor is slowed down for heat or low voltage.", vitals.throttled
    yield "resident_memory_bytes", "Of this process.", vitals.rss_mb * 1e6
    yield "start_time_seconds", "When the device started, since the epoch.", status.since
    yield "source_silent_seconds", "Since a live source delivered nothing.", status.source_silent_s
    yield "status_age_seconds", "Age of these numbers.", time.monotonic() - status.written_monotonic


def _counters(status: DeviceStatus) -> Iterator[tuple[str, str, str, dict[str, int]]]:
    """(name, text, label or empty, counts by label)."""
    report, audio = status.report, status.audio
    fates = {fate: report[f"windows_{fate}"] for fate in ("acked", "local", "dropped")}
    events = {
        "gated": audio.gated,
        "overrun": audio.overruns,
        "file_skipped": audio.files_skipped,
        "file_cut_short": audio.files_cut_short,
        "clock_step": audio.clock_steps,
    }
    samples = {
        "dropped": audio.dropped_samples,
        "bad": audio.bad_samples,
        "clipped": audio.clipped_samples,
        "cancelled": audio.cancelled_samples,
        "offset": audio.offset_samples,
    }
    yield "windows_captured", "Windows taken from the source.", "", {"": report["windows_captured"]}
    yield "windows", "Windows by what became of them.", "fate", fates
    yield "windows_dropped", "Windows dropped, by reason.", "reason", report["dropped"]
    yield "windows_finished", "Windows with an embedding, by where it was made.", "where", report["finished"]
    yield "windows_replayed", "Frames sent from the spool.", "", {"": report["windows_replayed"]}
    yield "windows_refused", "Frames the server refused.", "", {"": report["windows_refused"]}
    yield "inherited_dropped", "Dropped frames of earlier runs.", "", {"": report["inherited_dropped"]}
    yield "cut", "Windows by the cut that was chosen.", "cut", report["cuts"]
    traffic = dict(zip(("up", "down", "updates"), status.traffic.run, strict=True))
    yield "traffic_bytes", "That passed the interface, both ways; updates are part of it.", "kind", traffic
    yield "events_withheld", "Not published, since the budget was used up.", "", {"": status.traffic.withheld}
    yield "sent_bytes", "Bytes sent to the broker.", "", {"": report["bytes_sent"]}
    yield "table_swaps", "Splitter tables taken over.", "", {"": report["table_swaps"]}
    yield "audio_events", "What happened to the audio before it became windows.", "event", events
    yield "audio_samples", "Samples that were missing or wrong.", "kind", samples
    yield "results_dropped", "Results whose readers did not take them.", "", {"": status.results_dropped}
    yield "errors", "Errors by type.", "type", report["errors"]
