"""One device as people and programs see it: the figures of its last report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from runtime_edge.base.text import printable
from runtime_edge.formats.records.table import LOCAL
from runtime_server.releases.device_reports import DeviceTraffic, waiting_update

_TEXT = 80
_MAX_CUTS, _MAX_FAILURES = 12, 4
_MOST = 1e15


class Heard(msgspec.Struct, frozen=True):
    """The latest result that a device has published."""

    time: float
    labels: dict[str, float]
    detected: list[str]
    latency_ms: float


class Traffic(msgspec.Struct, frozen=True):
    """Bytes that passed the device's interface, and the seconds over which they were measured."""

    up: int = 0
    down: int = 0
    updates: int = 0
    seconds: float = 0.0


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device; values it does not report are None. Times are seconds since the epoch."""

    name: str
    seen: float
    """When it last reported."""
    revision: int = 0
    target: str = ""
    software: str = ""
    runtime: str = ""
    boot: str = ""
    generation: int | None = None
    on_trial: bool = False
    head_generation: int | None = None
    cut: str = ""
    """The cut that most windows since the previous report had."""
    cuts: dict[str, float] = {}
    """Shares of its windows in this run, by cut; below, shares of the answers: `server`, `device`, `fallback`,
    `exit`."""
    answers: dict[str, float] = {}
    latency_ms: dict[str, float] = {}
    """`p50` and `p95` at the most frequent cut."""
    windows: dict[str, int] = {}
    """Counts by fate: captured, acked, local, spooled, dropped, lost, refused."""
    hour: Traffic = Traffic()
    month: Traffic = Traffic()
    budget: dict[str, float] = {}
    """Bytes left of the budgets `all` and `updates`, as far as they exist."""
    mbps: float | None = None
    rtt_ms: float | None = None
    cpu: float | None = None
    uncertainty: float | None = None
    memory_mb: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    battery: float | None = None
    """Its charge, 0 to 1."""
    errors: dict[str, int] = {}
    troubles: list[str] = []
    """What is wrong, as text."""
    on: dict[str, float] = {}
    """Labels that are on, and since when."""
    scores: dict[str, float] = {}
    """Scores of labels whose switching on was reported."""
    heard: Heard | None = None
    counted: dict[str, int] = {}
    """Numbers of windows in this run, by cut."""


def device_view(name: str, report: Mapping[str, Any], before: DeviceView | None, seen: float) -> DeviceView:
    """A device according to its latest report and what was known before."""
    counted, boot = _counts(report.get("cuts")), _text(report.get("boot"))
    same_run = before if before is not None and before.boot == boot else None
    latencies = report.get("latency_ms")
    state, traffic = _dict(report.get("state")), DeviceTraffic.of(report)
    most = max(counted, key=lambda cut: counted[cut], default="")
    return DeviceView(
        name=name,
        seen=seen if before is None else max(before.seen, seen),
        target=_text(report.get("target")),
        software=_text(report.get("software")),
        runtime=_text(report.get("runtime")),
        boot=boot,
        generation=_whole(report.get("generation_end")),
        on_trial=report.get("on_trial") is True,
        head_generation=None if before is None else before.head_generation,
        cut=_lately(counted, same_run) or most,
        cuts=_shares(counted),
        answers=_shares(_counts(report.get("finished"))),
        latency_ms=_numbers(_dict(_dict(latencies).get(most)), "p50", "p95"),
        windows=_windows(report),
        hour=Traffic(*traffic.hour.traffic, traffic.hour.seconds),
        month=Traffic(*traffic.month.traffic, traffic.month.seconds),
        budget=_budgets(report),
        mbps=_number(state.get("bandwidth_mbps")),
        rtt_ms=_number(state.get("rtt_ms")),
        cpu=_number(state.get("cpu")),
        uncertainty=_number(state.get("uncertainty")),
        memory_mb=_number(report.get("memory_mb")),
        temperature_c=_number(report.get("temperature_c")),
        throttled=found if isinstance(found := report.get("throttled"), bool) else None,
        battery=_number(state.get("battery")),
        errors=_counts(report.get("errors")),
        troubles=_troubles(report),
        on={label: at for label, at in _numbers(_dict(report.get("labels_on"))).items() if at > 0},
        scores={} if same_run is None else same_run.scores,
        heard=None if before is None else before.heard,
        counted=counted,
    )


def _lately(counted: Mapping[str, int], before: DeviceView | None) -> str:
    """The cut that most windows since the previous report had; empty if there were none."""
    if before is None:
        return ""
    grown = {cut: count - before.counted.get(cut, 0) for cut, count in counted.items()}
    cut = max(grown, key=lambda cut: grown[cut], default="")
    return cut if cut and grown[cut] > 0 else before.cut


def _windows(report: Mapping[str, Any]) -> dict[str, int]:
    names = ("captured", "acked", LOCAL, "spooled", "dropped", "lost", "refused")
    told = {name: _whole(report.get(f"windows_{name}")) for name in names}
    return {name: count for name, count in told.items() if count is not None}


def _budgets(report: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, key in (("all", "budget"), ("updates", "update_budget")):
        told = report.get(key)
        if isinstance(told, list) and len(told) == 2 and (left := _number(told[1])) is not None:
            found[name] = left
    return found


def _troubles(report: Mapping[str, Any]) -> list[str]:
    found = [f"{lost} windows are lost without a reason"] if (lost := _whole(report.get("windows_lost"))) else []
    if (waits := waiting_update(report)) is not None:
        found.append(f"generation {waits.generation} waits for a budget")
    failures = report.get("update_failures")
    for said in failures[-_MAX_FAILURES:] if isinstance(failures, list) else []:
        if isinstance(said, dict):
            found.append(printable(f"{said.get('event')}: {said.get('reason')}", 200))
    if isinstance(trouble := report.get("trouble"), str) and trouble:
        found.append(printable(trouble, 200))
    return found


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: round(count / total, 4) for name, count in counts.items()} if total else {}


def _counts(told: object) -> dict[str, int]:
    found = {}
    for name, value in list(_dict(told).items())[:_MAX_CUTS]:
        if (count := _whole(value)) is not None:
            found[printable(str(name), _TEXT)] = count
    return found


def _numbers(told: Mapping[str, Any], *names: str) -> dict[str, float]:
    found = {}
    for name in names or list(told)[:100]:
        if (number := _number(told.get(name))) is not None:
            found[printable(str(name), _TEXT)] = number
    return found


def _dict(told: object) -> dict[str, Any]:
    return told if isinstance(told, dict) else {}


def _text(told: object) -> str:
    return printable(told, _TEXT) if isinstance(told, str) else ""


def _whole(told: object) -> int | None:
    return told if type(told) is int and 0 <= told < _MOST else None


def _number(told: object) -> float | None:
    if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told) or abs(told) > _MOST:
        return None
    return float(told)
