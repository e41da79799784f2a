"""Advice from measurements, worded like that of `ssc advise` (docs/advice.md)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

from runtime_server.lab import policy_arms
from runtime_server.lab.accuracy import Accuracy
from runtime_server.lab.figures import Figures
from runtime_server.lab.policy_bench import PolicyBench
from runtime_server.lab.proof.proof_report import first_ms, policies_of, runs_of, scored
from runtime_server.lab.proof.wins import reward_of
from streamsplit_compile.advice.advice import DEVICE_ONLY, TABLE, Advice, Estimate

_HOUR_S = 3600
_FIXED = "cut:"
_NAMES = {policy_arms.DEVICE_ONLY: DEVICE_ONLY, policy_arms.OURS: TABLE, "pcm16": "PCM", "flac": "FLAC"}
_NOT_FOR_USERS = ("rule", "optimum")
"""A baseline, and the optimum, which knows the future."""


def measured_advice(bench: PolicyBench, encoder: str, scenario: str) -> Advice | None:
    """Advice about the policies that were played; None if there is no choice between them."""
    played = [policy for policy in policies_of(bench, encoder, scenario) if policy not in _NOT_FOR_USERS]
    if len(played) < 2:
        return None
    estimates = tuple(
        _measured(_named(policy), runs_of(bench, encoder, scenario, policy), scored(bench, encoder, scenario, policy))
        for policy in played
    )
    return Advice(bench.target, scenario, estimates, "measured", bench.encoders[encoder].cuts[-1], ())


def _named(policy: str) -> str:
    """The policy's name in `ssc advise`."""
    if policy.startswith("opus-"):
        return f"Opus {policy.removeprefix('opus-')}"
    return _NAMES.get(policy, policy.removeprefix(_FIXED))


def _measured(policy: str, runs: Sequence[Figures], accuracy: Accuracy | None) -> Estimate:
    def of(figure: Callable[[Figures], float]) -> float:
        return statistics.median(map(figure, runs))

    hop_s = of(
        lambda run: statistics.median(b - a for a, b in itertools.pairwise(run.times_s)) if run.windows > 1 else 1
    )
    idle_mj = of(lambda run: run.energy_mj.get("idle", 0.0))
    first, final = of(lambda run: first_ms(run)["p50"]), of(lambda run: run.latency_ms["p50"])
    return Estimate(
        policy=policy,
        first_ms=first,
        final_ms=final,
        up_bytes=of(lambda run: run.up_mb_per_hour) * 1e6 * hop_s / _HOUR_S,
        down_bytes=of(lambda run: run.down_mb_per_hour) * 1e6 * hop_s / _HOUR_S,
        above_idle_mj=of(lambda run: run.energy_mj["total"]),
        idle_mj=idle_mj,
        agreement=of(lambda run: run.fidelity),
        memory_mb=of(lambda run: run.memory_mb),
        reward=reward_of(runs),
        hop_s=hop_s,
        head=None if accuracy is None else accuracy.head,
        head_first=None if accuracy is None else accuracy.head_first,
    )


def measured_sources(bench: PolicyBench) -> list[str]:
    """Where the figures come from, one line each."""
    times = (
        f"{bench.target}'s times as {bench.measured_by} has them"
        if bench.measured_by
        else f"{bench.target}'s predicted times"
    )
    lasted = f"{bench.shortest_s:g} to {bench.seconds:g} s" if bench.shortest_s else f"{bench.seconds:g} s"
    return [
        f"answers (medians), bytes and memory: measured, in runs of {lasted}, a device process kept to {times}",
        f"bytes: {bench.bytes_are}" + (f"; link: {bench.link_is}" if bench.link_is else ""),
        f"energy: modelled, by {bench.target}'s and the radio's published figures, for what ran and what passed",
        "agreement: the mean cosine of last answers with the float32 encoder, over the windows of the runs; head: of "
        "labelled clips, by the same code without processes",
    ]
