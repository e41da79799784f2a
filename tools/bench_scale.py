"""Measures a server of two ranks and a cluster of three brokers: the cost of a fleet, and the effect of kills.

    python -m tools.bench_scale [--quick] [--minutes 10] [--audio DIR]

The cost is measured for several numbers of devices without training and without kills, all on this machine, and a line
is fitted to it; then the fleet of `python -m tools.fleet` runs with a SIGKILL every minute.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from runtime_edge.formats.bundle import open_bundle
from tools.benchmarks import Section, publish
from tools.fleet import Fleet, FleetConfig, FleetRecordings, FleetReport, prepare

ENCODER = "mobilenet_v3_small"
_WARM_S = 8.0
_AUDIO = "SSC_TEST_AUDIO"


@dataclass(frozen=True)
class Cost:
    """Resources used by a number of devices with one window a second each, per second of the measurement."""

    devices: int
    windows: float
    rank_cores: float
    """Processor seconds of all ranks."""
    broker_cores: float
    """Processor seconds of all brokers."""
    rank_mb: float
    """Resident memory of all ranks at the end, MB (1e6 bytes)."""
    broker_mb: float
    disk_bytes: float
    """Growth of the stream of frames on each broker."""
    reply_p50_ms: float
    reply_p95_ms: float


class MeasuredFleet(Fleet):
    """A fleet without kills, whose processes are measured."""

    cost: Cost

    async def meanwhile(self) -> None:
        """Measure from when everything runs until shortly before the end."""
        await asyncio.sleep(_WARM_S)
        brokers = [found for place in range(self.config.brokers) if (found := self.brokers.process(place))]
        ranks = list(self.server.processes().values())
        before, began = self._used(ranks, brokers), time.monotonic()
        await asyncio.sleep(self.config.seconds - _WARM_S - 2.0)
        after, seconds = self._used(ranks, brokers), time.monotonic() - began
        windows, rank_s, broker_s, disk = ((new - old) / seconds for old, new in zip(before, after, strict=True))
        took = self.answers.took_ms
        self.cost = Cost(
            self.config.devices,
            windows,
            rank_s,
            broker_s,
            sum(one.memory_info().rss for one in ranks) / 1e6,
            sum(one.memory_info().rss for one in brokers) / 1e6,
            disk,
            float(np.percentile(took, 50)),
            float(np.percentile(took, 95)),
        )

    def _used(self, ranks: list[psutil.Process], brokers: list[psutil.Process]) -> tuple[float, float, float, float]:
        """Totals so far: windows, processor seconds of ranks and of brokers, bytes on one broker's disk."""
        windows = sum(device.accounting.acked for device in self.devices)
        rank_s, broker_s = (sum(sum(one.cpu_times()[:2]) for one in some) for some in (ranks, brokers))
        store = self.brokers.each[0].state / "jetstream"
        return (
            windows,
            rank_s,
            broker_s,
            sum(path.stat().st_size for path in store.rglob("streams/ACTIVATIONS/msgs/*.blk")),
        )


def measure(work: Path, quick: bool, minutes: float, audio: Path | None) -> Section:
    """Run everything below `work`; returns the section for docs/benchmarks."""
    encoder, bundle = prepare(work, ENCODER)
    recorded = FleetRecordings(open_bundle(bundle), encoder, audio)
    sizes, seconds = ((20, 40), 25.0) if quick else ((50, 100, 200), 70.0)
    costs = []
    for devices in sizes:
        (place := work / f"cost-{devices}").mkdir()
        config = FleetConfig(devices, seconds, kill_every_s=None, server_options=("--no-training",))
        fleet = MeasuredFleet(place, encoder, bundle, recorded, config)
        asyncio.run(fleet.run())
        costs.append(fleet.cost)
        print(fleet.cost, flush=True)
    devices, every_s = (20, 10.0) if quick else (200, 60.0)
    config = FleetConfig(devices, 60.0 * minutes, kill_every_s=every_s, server_options=("--train-share", 0.2))
    (place := work / "kills").mkdir()
    report = asyncio.run(Fleet(place, encoder, bundle, recorded, config).run())
    print(report, flush=True)
    return _section(costs, report, recorded.mean_bytes)


def _section(costs: list[Cost], report: FleetReport, payload_bytes: float) -> Section:
    section = Section("server", "A fleet", "python -m tools.bench_scale", part="scale")
    kills = f"{sum(report.kills.values())} SIGKILLs of {report.ranks} ranks and {report.brokers} brokers"
    scale = f"{report.devices} devices, {report.seconds / 60:.0f} minutes, {report.captured} windows"
    section.add("kill_lost", report.lost, "at most 0", f"windows lost: {scale}, {kills}")
    section.add("kill_duplicated", report.duplicated, "at most 0", "windows counted twice in that run")
    section.add("kill_wrong_replies", report.wrong_replies, "at most 0", f"of {sum(report.replies.values())} replies")
    section.detail("reply p50, p95 in that run, ms", f"{report.reply_p50_ms}, {report.reply_p95_ms}")
    section.detail("windows sent again from a spool", str(report.replayed))
    for name, what in (
        ("rank_cores", "cores of the ranks"),
        ("broker_cores", "cores of the three brokers"),
        ("rank_mb", "MB of the ranks"),
        ("broker_mb", "MB of the three brokers"),
        ("disk_bytes", "bytes a second that the stream of frames grows on each broker"),
    ):
        slope, base = np.polyfit([one.windows for one in costs], [getattr(one, name) for one in costs], 1)
        about = f"{what} per 1000 devices of a window a second; {base:.3g} with none (a line through the rows below)"
        section.add(f"per_1000_devices.{name}", 1000 * float(slope), "", about)
    section.detail("payload of a frame, bytes on average", f"{payload_bytes:.0f}")
    for one in costs:
        section.detail(
            f"{one.devices} devices, {one.windows:.0f} windows a second: cores of ranks, brokers; MB; reply p50, p95",
            f"{one.rank_cores:.3f}, {one.broker_cores:.3f}; {one.rank_mb:.0f}, {one.broker_mb:.0f}; "
            f"{one.reply_p50_ms:.0f}, {one.reply_p95_ms:.0f} ms",
        )
    return section


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer devices, and kills for half a minute")
    parser.add_argument("--minutes", type=float, help="of kills [default: 10, with --quick 0.5]")
    parser.add_argument("--audio", type=Path, default=os.environ.get(_AUDIO), help="recordings; soundscape without")
    options = parser.parse_args(arguments)
    minutes = options.minutes or (0.5 if options.quick else 10.0)
    with tempfile.TemporaryDirectory(prefix="ssc-bench-") as work:
        section = measure(Path(work), options.quick, minutes, options.audio and Path(options.audio))
    return publish(section)


if __name__ == "__main__":
    main()
