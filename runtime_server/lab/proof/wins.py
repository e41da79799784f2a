"""Where cutting pays: in which rows of a measurement the table beats every alternative."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from runtime_edge.formats.records.table import LOCAL, Reward
from runtime_edge.policy.reward import exit_latency_ms, worth
from runtime_server.lab.figures import Figures
from runtime_server.lab.policy_arms import DEVICE_ONLY, OURS
from runtime_server.lab.policy_bench import PolicyBench
from runtime_server.lab.proof.proof_report import SERVER_ONLY, first_ms, policies_of, runs_of, scored
from streamsplit_compile.cost.radios import list_radios, load_radio

PHIS = (0.5, 0.0, 1.0)
"""Weights of the first answer in the reward; the first of them decides."""
_MOST_LOST, _GAINED = 1.0, 1.0
"""Points of accuracy: how many a win may lose, and how many make up for a device's own energy and latency."""
_LEAST_BETTER = 2
"""In how many of the four figures the table must be better than each server-only policy."""
_TAILS = 10
"""Minimum length of a run in tails of the radio, which is awake at the beginning of each run whatever is shipped."""
_FOUR: Mapping[str, Callable[[Figures], float]] = {
    "first": lambda run: first_ms(run)["p50"],
    "final": lambda run: run.latency_ms["p50"],
    "bytes": lambda run: run.up_mb_per_hour + run.down_mb_per_hour,
    "energy": lambda run: run.energy_mj["total"],
}
"""For each of them, less is better."""


@dataclass(frozen=True)
class Row:
    """The table in one scenario with one encoder."""

    encoder: str
    scenario: str
    rewards: dict[float, dict[str, float]]
    """By phi and policy, without the value of what a server learns."""
    reasons: tuple[str, ...]
    """Why the table does not win; empty if it does."""
    lost: float | None
    """Points of accuracy that the table's last answers lose against the whole encoder; None if that is unknown."""
    lost_first: float | None
    """The same of its first answers."""

    @property
    def wins(self) -> bool:
        """Whether cutting pays here."""
        return not self.reasons


Points = Mapping[str, Mapping[str, float]]
"""Points of accuracy lost, by encoder and by what computed an answer (`accuracy.Answers`), measured on many clips."""


def rows(bench: PolicyBench, points: Points | None = None) -> list[Row]:
    """The rows of every encoder and scenario in which the table, device-only and a server-only policy were played.

    Accuracy is taken from `points` for the encoders in it, else from the bench's own clips.
    """
    found = []
    for encoder, scenario in dict.fromkeys((run.encoder, run.scenario) for run in bench.runs):
        played = policies_of(bench, encoder, scenario)
        alternatives = [name for name in played if name in (*SERVER_ONLY, DEVICE_ONLY)]
        if OURS in played and DEVICE_ONLY in played and len(alternatives) > 1:
            found.append(_row(bench, encoder, scenario, alternatives, (points or {}).get(encoder)))
    return found


def _row(
    bench: PolicyBench, encoder: str, scenario: str, alternatives: Sequence[str], points: Mapping[str, float] | None
) -> Row:
    runs = {name: runs_of(bench, encoder, scenario, name) for name in (OURS, *alternatives)}
    rewards = {phi: {name: reward_of(own, phi) for name, own in runs.items()} for phi in PHIS}
    reasons = []
    best, most = best_other(rewards[PHIS[0]])
    if (own := rewards[PHIS[0]][OURS]) <= most:
        reasons.append(f"reward {own:.2f}, {best} {most:.2f}")
    lost, lost_first = (_lost(bench, encoder, scenario, points, first) for first in (False, True))
    for name in alternatives:
        better = [what for what in _FOUR if _median(runs[OURS], what) < _median(runs[name], what)]
        if name == DEVICE_ONLY:
            enough = {"first", "energy"} <= set(better) or (lost or 0.0) <= -_GAINED
        else:
            enough = len(better) >= _LEAST_BETTER
        if not enough:
            reasons.append(f"better than {name} in {' and '.join(better) or 'nothing'} only")
    if (tail_s := _tail_s(bench, scenario)) * _TAILS > (bench.shortest_s or bench.seconds):
        reasons.append(f"runs are too short to tell: the radio stays awake for {tail_s:.3g} s from before their begin")
    if lost is None:
        reasons.append("accuracy was not measured")
    elif lost > _MOST_LOST:
        reasons.append(f"{lost:.2f} points lost")
    return Row(encoder, scenario, rewards, tuple(reasons), lost, lost_first)


def best_other(rewards: Mapping[str, float]) -> tuple[str, float]:
    """The alternative to the table with the largest reward."""
    return max(((name, value) for name, value in rewards.items() if name != OURS), key=lambda other: other[1])


def _median(runs: Sequence[Figures], what: str) -> float:
    return float(statistics.median(map(_FOUR[what], runs)))


def reward_of(runs: Sequence[Figures], phi: float = Reward().first_share) -> float:
    """The reward of a policy's repetitions, by medians of the measurements, without the value of learning."""
    reward = msgspec.structs.replace(Reward(), phi=phi)
    agreed = statistics.median(run.fidelity for run in runs)
    first = statistics.median(run.fidelity if run.fidelity_first is None else run.fidelity_first for run in runs)
    latency_ms = exit_latency_ms(_median(runs, "first"), _median(runs, "final"), reward)
    return float(sum(worth(phi * first + (1 - phi) * agreed, latency_ms, _median(runs, "energy"), reward)))


def _tail_s(bench: PolicyBench, scenario: str) -> float:
    """The tail, s, of the radio that the energy is computed for."""
    link = bench.scenarios[scenario].link if scenario in bench.scenarios else ""
    return load_radio(link).tail_ms.value / 1e3 if link in list_radios() else 0.0


def _lost(
    bench: PolicyBench, encoder: str, scenario: str, points: Mapping[str, float] | None, first: bool
) -> float | None:
    """Points of accuracy that the table's answers lose against the device alone, which runs the whole encoder.

    None if that is unknown for one of them. 16-bit recordings sent as PCM lose nothing.
    """
    if points is None:
        table, alone = (scored(bench, encoder, scenario, policy) for policy in (OURS, DEVICE_ONLY))
        right = None if table is None else table.head_first if first else table.head
        if right is None or alone is None or alone.head is None:
            return None
        return 100 * (alone.head - right)
    runs = runs_of(bench, encoder, scenario, OURS)
    made = [name for run in runs for name in (run.first_answers if first else run.final_answers) or run.sequence]
    known = [points.get(name, 0.0 if name in ("waveform", LOCAL) else None) for name in made]
    return None if None in known else statistics.fmean(one for one in known if one is not None)
