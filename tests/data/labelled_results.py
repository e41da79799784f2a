"""A result of a window, without and with labels."""

from __future__ import annotations

import msgspec

from runtime_edge.formats.results import WindowResult

RESULT = WindowResult(
    version=2,
    answer="server",
    window=7,
    time=1.5,
    embedding=[0.6, 0.8],
    uncertainty=0.25,
    cut="layer1",
    encoding="int8",
    probe=False,
    generation=3,
    finished="server",
    latency_ms=12.5,
    device_ms=3.0,
    network_ms=8.5,
    server_ms=1.0,
    frame_bytes=321,
    bandwidth_mbps=5.0,
    rtt_ms=8.0,
    cpu=0.5,
)

LABELLED = msgspec.structs.replace(
    RESULT, labels={"dog": 0.8, "rain": 0.15, "alarm": 0.05}, detected=["dog"], head_generation=2
)
