"""A bench as tables: every policy against server-only PCM, and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runtime_edge.errors import CheckFailed
from runtime_server.lab.accuracy import Accuracy
from runtime_server.lab.figures import PARTS, Figures
from runtime_server.lab.policy_arms import OPUS_KBPS
from runtime_server.lab.policy_bench import PolicyBench
from runtime_server.lab.window_energy import MODELLED

BASELINE = "pcm16"
SERVER_ONLY = (BASELINE, "flac", *(f"opus-{kbps}" for kbps in OPUS_KBPS))
TIMES = (
    "policy", "first p50", "first p99", "p50 ms", "p95 ms", "p99 ms", "device", "network", "server", "wait", "first",
    "latency",
)  # fmt: skip
COSTS = (
    "policy", "MB/h up", "MB/h down", "mJ", "of it radio", "with idle", "bytes", "both ways", "energy",
)  # fmt: skip
AGAINST = ("first", "latency", "bytes", "both ways", "energy")
"""The columns of `as_text`, which stand at the end of `TIMES` and `COSTS`."""
_MONTH_HOURS = 30 * 24
TRAFFIC = (
    "policy", "up\nMB an hour", "down\nMB an hour", "updates\nMB an hour", "up\nGB a month", "down\nGB a month",
    "updates\nGB a month",
)  # fmt: skip
QUALITY = ("policy", "fidelity", "worst", "of first", "head", "head first", "probe", "P@10", "silhouette")
BEHAVIOUR = (
    "policy", "by server", "fell back", "missing", "changes", "reaction s", "processor", "queued", "MB", "mJ measured",
)  # fmt: skip


@dataclass(frozen=True)
class Ratios:
    """One policy against the baseline of the same encoder, scenario and repetition."""

    latency: float
    """p50 of the baseline divided by the policy's: how many times faster it is."""
    first_latency: float
    """The same for first answers, which an exit may give."""
    bytes_saved: float
    """Share of the baseline's bytes up that the policy does not send."""
    both_saved: float
    """The same for bytes both ways."""
    energy_saved: float


def ratios(bench: PolicyBench, encoder: str, scenario: str, policy: str, baseline: str = BASELINE) -> list[Ratios]:
    """One for each repetition; empty without a baseline."""
    found = []
    for run in runs_of(bench, encoder, scenario, policy):
        base = next((r for r in runs_of(bench, encoder, scenario, baseline) if r.repeat == run.repeat), None)
        if base is not None:
            found.append(
                Ratios(
                    base.latency_ms["p50"] / max(run.latency_ms["p50"], 1e-9),
                    base.latency_ms["p50"] / max(first_ms(run)["p50"], 1e-9),
                    1 - run.up_mb_per_hour / base.up_mb_per_hour,
                    1 - _both(run) / _both(base),
                    1 - run.energy_mj["total"] / base.energy_mj["total"],
                )
            )
    return found


def first_ms(run: Figures) -> Mapping[str, float]:
    """Latency of first answers; in files from before exits every answer was the first."""
    return run.first_latency_ms or run.latency_ms


def _both(run: Figures) -> float:
    return run.up_mb_per_hour + run.down_mb_per_hour


def spread(values: Iterable[float]) -> float:
    """(largest - smallest) / mean: how much repetitions differ."""
    values = list(values)
    middle = abs(statistics.fmean(values))
    return (max(values) - min(values)) / middle if middle else 0.0


def policies_of(bench: PolicyBench, encoder: str, scenario: str) -> list[str]:
    """Policies in the order they were played."""
    return list(dict.fromkeys(run.policy for run in bench.runs if (run.encoder, run.scenario) == (encoder, scenario)))


def scored(bench: PolicyBench, encoder: str, scenario: str, policy: str) -> Accuracy | None:
    """A policy's accuracy; for one that chooses, with the cuts it took in this scenario. None if not measured."""
    accuracy = bench.encoders[encoder].accuracy
    return accuracy.get(f"{scenario}/{policy}", accuracy.get(BASELINE if policy == "flac" else policy))


def times(bench: PolicyBench, encoder: str, scenario: str) -> list[list[str]]:
    """One row for each policy, medians over the repetitions, columns as in `TIMES`."""
    found = []
    for policy in policies_of(bench, encoder, scenario):
        runs = runs_of(bench, encoder, scenario, policy)
        found.append(
            [
                policy,
                *(f"{_median(first_ms(run)[p] for run in runs):.0f}" for p in ("p50", "p99")),
                *(f"{_median(run.latency_ms[p] for run in runs):.0f}" for p in ("p50", "p95", "p99")),
                *(f"{_median(run.parts_ms[part] for run in runs):.0f}" for part in PARTS),
                *as_text(ratios(bench, encoder, scenario, policy))[:2],
            ]
        )
    return found


def costs(bench: PolicyBench, encoder: str, scenario: str) -> list[list[str]]:
    """One row for each policy, medians over the repetitions, columns as in `COSTS`."""
    found = []
    for policy in policies_of(bench, encoder, scenario):
        runs = runs_of(bench, encoder, scenario, policy)
        found.append(
            [
                policy,
                f"{_median(run.up_mb_per_hour for run in runs):.2f}",
                f"{_median(run.down_mb_per_hour for run in runs):.2f}",
                f"{_median(run.energy_mj['total'] for run in runs):.1f}",
                f"{_median(run.energy_mj['radio'] for run in runs):.1f}",
                _with_idle(runs),
                *as_text(ratios(bench, encoder, scenario, policy))[2:],
            ]
        )
    return found


def traffic(bench: PolicyBench, encoder: str, scenario: str) -> list[list[str]]:
    """One row for each policy, medians over the repetitions, columns as in `TRAFFIC`; scaled to a month."""
    found = []
    for policy in policies_of(bench, encoder, scenario):
        runs = runs_of(bench, encoder, scenario, policy)
        rates = [
            _median(run.up_mb_per_hour for run in runs),
            _median(run.down_mb_per_hour for run in runs),
            _median(run.updates_mb_per_hour for run in runs),
        ]
        months = [rate * _MONTH_HOURS / 1e3 for rate in rates]
        found.append([policy, *(f"{rate:.2f}" for rate in rates), *(f"{month:.2f}" for month in months)])
    return found


def _with_idle(runs: Sequence[Figures]) -> str:
    """Total energy with idle energy; empty for files without the latter."""
    if not all("idle" in run.energy_mj for run in runs):
        return ""
    return f"{_median(run.energy_mj['total'] + run.energy_mj['idle'] for run in runs):.0f}"


def as_text(ratio: Sequence[Ratios]) -> tuple[str, ...]:
    """Medians against the baseline: how many times faster the first and last answers are, and the change of bytes up,
    bytes both ways and energy. Empty without a baseline.
    """
    if not ratio:
        return ("",) * len(AGAINST)
    return (
        f"{_median(r.first_latency for r in ratio):.2f}x",
        f"{_median(r.latency for r in ratio):.2f}x",
        f"{-_median(r.bytes_saved for r in ratio):+.1%}",
        f"{-_median(r.both_saved for r in ratio):+.1%}",
        f"{-_median(r.energy_saved for r in ratio):+.1%}",
    )


def quality(bench: PolicyBench, encoder: str, scenario: str) -> list[list[str]]:
    """One row for each policy, columns as in `QUALITY`: medians, and the worst value."""
    found = []
    for policy in policies_of(bench, encoder, scenario):
        runs = runs_of(bench, encoder, scenario, policy)
        a = scored(bench, encoder, scenario, policy)
        of_clips = (a.head, a.head_first, a.probe, a.precision_at_10, a.silhouette) if a else (None,) * 5
        first = [run.fidelity if run.fidelity_first is None else run.fidelity_first for run in runs]
        found.append(
            [
                policy,
                f"{_median(run.fidelity for run in runs):.4f}",
                f"{min(run.fidelity_worst for run in runs):.4f}",
                f"{_median(first):.4f}",
                *("" if value is None else f"{value:.3f}" for value in of_clips),
            ]
        )
    return found


def behaviour(bench: PolicyBench, encoder: str, scenario: str) -> list[list[str]]:
    """One row for each policy, columns as in `BEHAVIOUR`: medians, sums of missed windows, the longest reaction."""
    found = []
    for policy in policies_of(bench, encoder, scenario):
        runs = runs_of(bench, encoder, scenario, policy)
        reactions = [reaction for run in runs for reaction in run.reaction_s]
        measured = {kind for run in runs for kind in run.energy_mj if kind not in MODELLED}
        found.append(
            [
                policy,
                f"{_median(run.finished.get('server', 0) / run.windows for run in runs):.0%}",
                str(sum(run.finished.get("fallback", 0) for run in runs)),
                str(sum(run.missing for run in runs)),
                f"{_median(run.changes for run in runs):.0f}",
                f"{max(reactions):.1f}" if reactions else "",
                f"{_median(run.processor_share for run in runs):.1%}",
                f"{_median(run.queued_share for run in runs):.0%}",
                f"{_median(run.memory_mb for run in runs):.0f}",
                ", ".join(f"{kind} {_median(run.energy_mj[kind] for run in runs):.0f}" for kind in sorted(measured)),
            ]
        )
    return found


def compare(first: PolicyBench, second: PolicyBench) -> list[tuple[str, str, float, float, float]]:
    """(where, ratio, first, second, difference relative to the first) for every ratio that both benches have.

    Bytes and energy are compared as quotients of the baseline's. Raises CheckFailed if they have nothing in common.
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
        raise CheckFailed(
            f"the two benchmarks have no policy of one encoder and scenario in common that both compare with {BASELINE}"
        )
    return found


def _quotient(ratio: Ratios, name: str) -> float:
    return {"latency": ratio.latency, "bytes": 1 - ratio.bytes_saved, "energy": 1 - ratio.energy_saved}[name]


def runs_of(bench: PolicyBench, encoder: str, scenario: str, policy: str) -> list[Figures]:
    """All repetitions of a policy."""
    return [run for run in bench.runs if (run.encoder, run.scenario, run.policy) == (encoder, scenario, policy)]


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))
