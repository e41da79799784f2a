"""Prometheus metrics out of plain numbers. The one file that imports prometheus_client."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime_edge.base.histogram import BOUNDS_MS, Histogram
from runtime_edge.errors import MissingExtra

if TYPE_CHECKING:
    from prometheus_client import Metric

Labels = Mapping[tuple[str, ...], float]
"""Values by the text of each label, in the order of the labels."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def gauge(name: str, text: str, value: float) -> Metric:
    """A single value."""
    return gauges(name, text, "", {"": value})


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """One value for each value of `label`; with an empty label, the only value."""
    found: Labels = {(key,) if label else (): value for key, value in values.items()}
    return labelled_gauges(name, text, (label,) if label else (), found)


def counters(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    """One count for each value of `label`; with an empty label, the only count."""
    found: Labels = {(key,) if label else (): count for key, count in counts.items()}
    return labelled_counters(name, text, (label,) if label else (), found)


def labelled_gauges(name: str, text: str, labels: Sequence[str], values: Labels) -> Metric:
    """One value for each combination of the labels' values."""
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def labelled_counters(name: str, text: str, labels: Sequence[str], counts: Labels) -> Metric:
    """One count for each combination of the labels' values."""
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in counts.items():
        family.add_metric(key, count)
    return family


def histograms(name: str, text: str, label: str, found: Iterable[tuple[str, Histogram]]) -> Metric:
    """Histograms of durations for each value of `label`, in seconds, as Prometheus expects."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    bounds = [*(str(bound / 1e3) for bound in BOUNDS_MS), "+Inf"]
    for key, histogram in found:
        buckets = list(zip(bounds, map(float, itertools.accumulate(histogram.counts)), strict=True))
        family.add_metric([key] if label else [], buckets, histogram.sum_ms / 1e3)
    return family


def info(name: str, text: str, values: Mapping[str, str]) -> Metric:
    """Descriptive texts, such as a version."""
    from prometheus_client.core import InfoMetricFamily

    return InfoMetricFamily(name, text, value=dict(values))


def render(families: Iterable[Metric]) -> bytes:
    """The text that Prometheus reads."""
    from prometheus_client import generate_latest

    return generate_latest(_registry(lambda: families))


def serve(port: int, families: Callable[[], Iterable[Metric]]) -> tuple[Any, Any]:
    """Answer `GET /metrics` on 127.0.0.1; returns the server and its thread. Raises OSError if the port is taken."""
    from prometheus_client import start_http_server

    return start_http_server(port, "127.0.0.1", _registry(families))


def require() -> None:
    """Raise MissingExtra if prometheus-client is not installed."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise MissingExtra("prometheus-client", "metrics") from None


def _registry(families: Callable[[], Iterable[Metric]]) -> Any:
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

    class Collected(Collector):
        def collect(self) -> Iterable[Metric]:
            return families()

    registry = CollectorRegistry()
    registry.register(Collected())
    return registry
