"""What a device says of itself, for tests of whoever reads it."""

from __future__ import annotations

import time

import msgspec

from runtime_edge.audio import Counters
from runtime_edge.base.logs import Trouble
from runtime_edge.base.traffic.traffic_log import Rate, Traffic
from runtime_edge.service.status import DeviceStatus, EncoderStatus, UplinkStatus
from runtime_edge.system import Health
from runtime_edge.transport.accounting import Accounting, LoopCounts, merged
from runtime_edge.transport.budgets import TrafficStatus
from runtime_edge.transport.spool.spool import SpoolState


def counted():
    """What the worker and the loop of a device have counted."""
    accounting, counts = Accounting(captured=20, acked=12, kept_local=3, inherited_dropped=1), LoopCounts()
    accounting.dropped["spool_full"] += 2
    counts.errors["LinkError"] += 4
    counts.cuts |= {"one": 15, "local": 5}
    for ms in (0.5, 3.0, 3.0, 70_000.0):
        counts.finish("one", "server", ms)
        accounting.stage_ms["prefix"].observe(ms)
    return accounting, counts


def status(**changes):
    accounting, counts = counted()
    made = DeviceStatus(
        device="pi-1",
        target="rpi4",
        pid=1,
        since=time.time() - 3700,
        written=time.time(),
        written_monotonic=time.monotonic(),
        ended=None,
        encoder=EncoderStatus(
            generation=7, bundle="sha256:" + "ab" * 32, variant="onnx-fp32", runtime="onnxruntime 1.23",
            table="ssc splitter train", on_trial=True,
        ),
        cut="one",
        uncertainty=0.25,
        cpu=0.5,
        uplink=UplinkStatus(broker="nats://gateway:4222", connected=True, bandwidth_mbps=2.5, rtt_ms=80.0, loss=0.125),
        traffic=TrafficStatus(
            run=Traffic(1_000_000, 2_000_000, 300_000),
            hour=Rate(Traffic(1_234_567, 2_000, 0), 5400.0),
            month=Rate(Traffic(888_000_000, 999_900_000, 46_000_000), 864_000.0),
            counted_by="the kernel, with headers from Ethernet upwards",
        ),
        spool=SpoolState(3, 2 << 20, 256 << 20, 0),
        audio=Counters(blocks=9, samples=100, windows=20, gated=4, overruns=1, dropped_samples=8000),
        source_silent_s=0.0,
        health=Health(101.5, 61.25, True),
        metrics_port=None,
        report=merged(accounting.report(3), counts.report()),
        stage_ms=dict(accounting.stage_ms),
        cut_ms=dict(counts.cut_ms),
        troubles=[Trouble("2026-01-01T00:00:00.000+00:00", "broker is away")],
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)
