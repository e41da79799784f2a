"""Prometheus metrics of all devices, each with a `device` label, from what they report (docs/page.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from runtime_edge.base.prometheus import Labels, labelled_counters, labelled_gauges
from runtime_server.telemetry.device_view import DeviceView, Traffic

if TYPE_CHECKING:
    from prometheus_client import Metric

_PREFIX = "ssc_device_"
_HOUR_S = 3600.0
_QUANTILES = {"p50": "0.5", "p95": "0.95"}
Several = Callable[[DeviceView], Mapping[str, float]]

_SINGLE: Sequence[tuple[str, str, Callable[[DeviceView], float | None]]] = (
    ("last_seen_timestamp_seconds", "When it was last heard of.", lambda view: view.seen),
    ("generation", "That it runs.", lambda view: view.generation),
    ("head_generation", "That labels what it hears.", lambda view: view.head_generation),
    ("uplink_mbps", "Its estimate.", lambda view: view.mbps),
    ("rtt_seconds", "Round trip to the broker.", lambda view: _scaled(view.rtt_ms, 1e-3)),
    ("cpu_load", "Of other work, 0 to 1.", lambda view: view.cpu),
    ("uncertainty", "Of what it hears, 0 to 1.", lambda view: view.uncertainty),
    ("memory_bytes", "Of its process.", lambda view: _scaled(view.memory_mb, 1e6)),
    ("temperature_celsius", "Of its processor.", lambda view: view.temperature_c),
    ("throttled", "Whether its processor is slowed down.", lambda view: view.throttled),
    ("battery_charge", "0 to 1.", lambda view: view.battery),
    ("troubles", "How much is wrong with it, as it says.", lambda view: len(view.troubles)),
)
_SEVERAL: Sequence[tuple[str, str, str, Several]] = (
    ("cut_share", "Of the windows of this run.", "cut", lambda view: view.cuts),
    ("answer_share", "Of the windows of this run, by who answered.", "answer", lambda view: view.answers),
    (
        "latency_seconds",
        "At the most frequent cut.",
        "quantile",
        lambda view: {_QUANTILES[name]: value * 1e-3 for name, value in view.latency_ms.items()},
    ),
    (
        "bytes_per_second",
        "That pass its interface, of the last hour.",
        "kind",
        lambda view: {kind: count / _HOUR_S for kind, count in _bytes(view.hour).items()},
    ),
    ("month_bytes", "That pass its interface in a month.", "kind", lambda view: _bytes(view.month)),
    ("label_on", "Labels that are on.", "label", lambda view: dict.fromkeys(view.on, 1.0)),
)


def fleet_families(devices: Sequence[DeviceView], is_alive: Callable[[DeviceView], bool]) -> Iterator[Metric]:
    """Every metric; for each device only what it has reported."""
    up: Labels = {(view.name,): float(is_alive(view)) for view in devices}
    yield labelled_gauges(_PREFIX + "up", "Whether it was heard of lately.", ("device",), up)
    for name, text, of in _SINGLE:
        values: Labels = {(view.name,): float(value) for view in devices if (value := of(view)) is not None}
        yield labelled_gauges(_PREFIX + name, text, ("device",), values)
    for name, text, label, several in _SEVERAL:
        found: Labels = {(view.name, key): value for view in devices for key, value in several(view).items()}
        yield labelled_gauges(_PREFIX + name, text, ("device", label), found)
    windows: Labels = {
        (view.name, outcome): float(count) for view in devices for outcome, count in view.windows.items()
    }
    text = "Of this run, by what became of them."
    yield labelled_counters(_PREFIX + "windows", text, ("device", "outcome"), windows)


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def _bytes(traffic: Traffic) -> Mapping[str, float]:
    return {"up": traffic.up, "down": traffic.down, "updates": traffic.updates}
