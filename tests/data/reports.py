"""What a device says of itself, and a clock to say it by."""

from __future__ import annotations

REPORT = {
    "device": "pi-1", "target": "rpi4", "software": "0.2.0", "boot": "b1", "generation_end": 3, "on_trial": False,
    "windows_captured": 20, "windows_acked": 12, "windows_local": 5, "windows_spooled": 1, "windows_dropped": 2,
    "windows_lost": 0, "windows_refused": 0, "cuts": {"stem": 15, "local": 5}, "finished": {"server": 15, "device": 5},
    "latency_ms": {"stem": {"p50": 12.5, "p95": 40.0, "windows": 15}}, "memory_mb": 101.5, "temperature_c": 61.25,
    "state": {"bandwidth_mbps": 2.5, "rtt_ms": 80.0, "cpu": 0.5, "uncertainty": 0.25, "battery": 0.8},
    "traffic": [[9, 9, 0], [100, 50, 10, 3600], [9000, 5000, 1000, 86400]], "budget": [2.0, 1500.0], "throttled": True,
    "errors": {"LinkError": 2}, "trouble": "broker is away", "labels_on": {},
}  # fmt: skip


class Clock:
    """Seconds since the epoch."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now
