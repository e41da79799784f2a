"""A bench as tables: every policy against server-only PCM, and the goals it is held to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from runtime_edge.errors import CheckFailed
from runtime_server.lab.bench import Bench
from runtime_server.lab.figures import Figures

BASELINE = "pcm16"
COLUMNS = (
    "policy", "p50 ms", "p95 ms", "p99 ms", "device", "network", "server", "MB/h up", "MB/h down", "mJ", "of it radio",
    "fidelity", "probe", "P@10", "latency", "bytes", "energy",
)  # fmt: skip


@dataclass(frozen=True)
class Ratios:
    """One policy against the baseline of the same encoder, scenario and repetition."""

    latency: float
    """p50 of the baseline over its own: how many times faster."""
    bytes_saved: float
    """Share of the baseline's bytes up that it does not send."""
    energy_saved: float


def ratios(bench: Bench, encoder: str, scenario: str, policy: str) -> list[Ratios]:
    """One for each repetition; empty without a baseline."""
    found = []
    for run in _runs(bench, encoder, scenario, policy):
        base = next((r for r in _runs(bench, encoder, scenario, BASELINE) if r.repeat == run.repeat), None)
        if base is not None:
            found.append(
                Ratios(
                    base.latency_ms["p50"] / max(run.latency_ms["p50"], 1e-9),
                    1 - run.up_mb_per_hour / base.up_mb_per_hour,
                    1 - run.energy_mj["total"] / base.energy_mj["total"],
                )
            )
    return found


def spread(values: Iterable[float]) -> float:
    """(largest - smallest) / mean; how much repetitions differ."""
    values = list(values)
    middle = abs(statistics.fmean(values))
    return (max(values) - min(values)) / middle if middle else 0.0


def rows(bench: Bench, encoder: str, scenario: str) -> list[list[str]]:
    """One row for each policy, medians over the repetitions, columns as in `COLUMNS`."""
    found = []
    accuracy = bench.encoders[encoder].accuracy
    for policy in dict.fromkeys(run.policy for run in bench.runs if (run.encoder, run.scenario) == (encoder, scenario)):
        runs = _runs(bench, encoder, scenario, policy)
        ratio = ratios(bench, encoder, scenario, policy)
        scored = accuracy.get(f"{scenario}/{policy}", accuracy.get("pcm16" if policy == "flac" else policy))
        parts = [f"{_median(run.parts_ms[part] for run in runs):.0f}" for part in ("device", "network", "server")]
        found.append(
            [
                policy,
                *(f"{_median(run.latency_ms[p] for run in runs):.0f}" for p in ("p50", "p95", "p99")),
                *parts,
                f"{_median(run.up_mb_per_hour for run in runs):.2f}",
                f"{_median(run.down_mb_per_hour for run in runs):.2f}",
                f"{_median(run.energy_mj['total'] for run in runs):.1f}",
                f"{_median(run.energy_mj['radio'] for run in runs):.1f}",
                f"{_median(run.fidelity for run in runs):.4f}",
                "" if scored is None else f"{scored.probe:.3f}",
                "" if scored is None else f"{scored.precision_at_10:.3f}",
                f"{_median(r.latency for r in ratio):.2f}x" if ratio else "",
                f"{-_median(r.bytes_saved for r in ratio):+.1%}" if ratio else "",
                f"{-_median(r.energy_saved for r in ratio):+.1%}" if ratio else "",
            ]
        )
    return found


def compare(first: Bench, second: Bench) -> list[tuple[str, str, float, float, float]]:
    """(where, ratio, first, second, difference relative to the first) for every ratio both benches have.

    Bytes and energy are compared as quotients of the baseline's. Raises CheckFailed when they have nothing in common.
    """
    found = []
    for encoder, scenario, policy in dict.fromkeys((r.encoder, r.scenario, r.policy) for r in first.runs):
        pair = [ratios(bench, encoder, scenario, policy) for bench in (first, second)]
        if policy == BASELINE or not all(pair):
            continue
        for name in ("latency", "bytes", "energy"):
            one, other = (_median(_quotient(ratio, name) for ratio in side) for side in pair)
            found.append((f"{encoder} {scenario} {policy}", name, one, other, abs(other - one) / max(abs(one), 1e-9)))
    if not found:
        raise CheckFailed("the two benches have no policy of one encoder and scenario in common beside a baseline")
    return found


def _quotient(ratio: Ratios, name: str) -> float:
    return {"latency": ratio.latency, "bytes": 1 - ratio.bytes_saved, "energy": 1 - ratio.energy_saved}[name]


def _runs(bench: Bench, encoder: str, scenario: str, policy: str) -> list[Figures]:
    return [run for run in bench.runs if (run.encoder, run.scenario, run.policy) == (encoder, scenario, policy)]


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))
