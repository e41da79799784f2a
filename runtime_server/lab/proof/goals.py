"""The table's goals against server-only PCM, next to the paper's numbers (docs/method.md, section 7)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from runtime_server.lab.figures import Figures
from runtime_server.lab.policy_arms import DEVICE_ONLY, OURS
from runtime_server.lab.policy_bench import PolicyBench
from runtime_server.lab.proof.proof_report import BASELINE, Ratios, first_ms, ratios, runs_of, scored

BESIDE = ("opus-16", DEVICE_ONLY)
"""What a user would use instead: their numbers are shown next to each of the table's."""
_POINT = 100.0
_SAME_PROBE = 0.005
"""A probe over 400 clips cannot resolve a smaller difference: two clips."""
DIFFERS = (
    "The paper's device is a board on a real link; here the device is a process of this machine, held to the board's "
    "predicted time for every block, on a link made by the kernel. Its energy was metered, here it is modelled.",
    "The radio is the link's, by published figures of other devices: an LTE modem stays awake for 11.6 s after each "
    "message, so whoever ships every window pays for a modem that never sleeps, however few the bytes.",
    "The paper's server-only baseline sends 2240.5 MB an hour. 16 kHz in 16 bits are 115.2 MB an hour; ours sends each "
    "sample once, so its 77.1 % would be of a baseline 19 times as large.",
    "The paper's accuracy is that of encoders trained in its loop; here the encoder is fixed, and a probe of its "
    "embeddings on ESC-10 shows what the wire takes away.",
)


@dataclass(frozen=True)
class Goal:
    """One goal, for one encoder in one scenario."""

    name: str
    paper: str
    value: float
    goal: str
    """`at least N` or `at most N`."""
    why: str
    """The parts that the value consists of: what to improve if the goal is missed."""
    beside: tuple[str, ...] = ("",) * len(BESIDE)
    """The same number for each of `BESIDE`; empty if that policy was not played."""

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        kind, bound = self.goal.rsplit(" ", 1)
        return self.value >= float(bound) if kind == "at least" else self.value <= float(bound)

    @property
    def missed_by(self) -> float:
        """The distance to the goal; 0 if it is met."""
        return 0.0 if self.met else abs(self.value - float(self.goal.rsplit(" ", 1)[1]))


def goals(bench: PolicyBench, encoder: str, scenario: str = "lte", policy: str = OURS) -> list[Goal]:
    """The goals; empty unless the bench has both the policy and the baseline."""
    ratio = ratios(bench, encoder, scenario, policy)
    if not ratio:
        return []
    runs = runs_of(bench, encoder, scenario, policy)
    part = {name: statistics.median(run.parts_ms[name] for run in runs) for name in runs[0].parts_ms}
    base_runs = runs_of(bench, encoder, scenario, BASELINE)
    base_ms = statistics.median(run.latency_ms["p50"] for run in base_runs)
    base_mj = statistics.median(run.energy_mj["total"] for run in base_runs)
    energy = {name: statistics.median(run.energy_mj[name] for run in runs) for name in ("compute", "radio")}
    found = [
        Goal(
            "latency", "up to 4.7", statistics.median(r.latency for r in ratio), "at least 4.7",
            f"{_parts(part, 'ms')}; {BASELINE} {base_ms:.0f} ms", _beside(bench, encoder, scenario, "latency"),
        ),
        Goal(
            "bytes saved", "0.771", statistics.median(r.bytes_saved for r in ratio), "at least 0.771",
            f"{_parts(_bytes(runs), 'MB/h')}; {BASELINE} {_up(base_runs):.0f} MB/h",
            _beside(bench, encoder, scenario, "bytes_saved"),
        ),
        Goal(
            "energy saved", "0.523", statistics.median(r.energy_saved for r in ratio), "at least 0.523",
            f"{_parts(energy, 'mJ')}; {BASELINE} {base_mj:.0f} mJ",
            _beside(bench, encoder, scenario, "energy_saved"),
        ),
    ]  # fmt: skip
    own, base = (scored(bench, encoder, scenario, name) for name in (policy, BASELINE))
    if own is not None and base is not None:
        lost = _POINT * (base.probe - own.probe)
        found.append(
            Goal(
                "points of accuracy lost",
                "2.2",
                lost,
                "at most 2.2",
                f"probe {own.probe:.3f}; {BASELINE} {base.probe:.3f}",
                tuple(
                    f"{_POINT * (base.probe - other.probe):.3g}" if other else ""
                    for other in (scored(bench, encoder, scenario, name) for name in BESIDE)
                ),
            )
        )
        found += _against_opus(bench, encoder, scenario, policy, own.probe)
    return found


def prompt_goals(bench: PolicyBench, encoder: str, scenario: str, policy: str) -> list[Goal]:
    """Goals of a policy that should answer early: against server-only PCM, and its last answers against Opus.

    Empty without these runs.
    """
    opus, _ = BESIDE
    runs, base, beside = (runs_of(bench, encoder, scenario, name) for name in (policy, BASELINE, opus))
    if not (runs and base and beside):
        return []
    final = {name: statistics.median(run.latency_ms["p50"] for run in runs_of(bench, encoder, scenario, name))
             for name in (policy, BASELINE, opus)}  # fmt: skip
    first = statistics.median(first_ms(run)["p50"] for run in runs)
    ratio = ratios(bench, encoder, scenario, policy)
    saved = statistics.median(min(one.bytes_saved, one.both_saved) for one in ratio)
    where = f"{policy}, {encoder} on {bench.target}, {scenario}"
    return [
        Goal("latency_first", "up to 4.7", statistics.median(one.first_latency for one in ratio), "at least 4.7",
             f"{where}: first answers after {first:.0f} ms, those of {BASELINE} after {final[BASELINE]:.0f}",
             _beside(bench, encoder, scenario, "first_latency")),
        Goal("latency_final_vs_opus", "", final[policy] / final[opus], "at most 1.0",
             f"{where}: last answers after {final[policy]:.0f} ms, those of {opus} after {final[opus]:.0f}"),
        Goal("bytes_saved", "0.771", saved, "at least 0.9",
             f"{where}: bytes up, and both ways, the less of either: "
             f"{_up(runs):.1f} MB/h up, {BASELINE} {_up(base):.0f}", _beside(bench, encoder, scenario, "both_saved")),
    ]  # fmt: skip


def thrifty_goals(bench: PolicyBench, encoder: str, scenario: str, policy: str) -> list[Goal]:
    """Goals of a policy that saves energy, against server-only PCM and device-only. Empty without these runs."""
    _, device = BESIDE
    ratio, alone = (ratios(bench, encoder, scenario, policy, name) for name in (BASELINE, device))
    if not (ratio and alone):
        return []
    runs = runs_of(bench, encoder, scenario, policy)
    energy = {name: statistics.median(run.energy_mj[name] for run in runs) for name in ("compute", "radio")}
    radio = bench.scenarios[scenario].link if scenario in bench.scenarios else ""
    why = f"{policy}, {encoder} on {bench.target}, {scenario}, radio {radio}: {_parts(energy, 'mJ')}"
    return [
        Goal("energy_saved", "0.523", _median_saved(ratio), "at least 0.523",
             why, _beside(bench, encoder, scenario, "energy_saved")),
        Goal("energy_vs_device_only", "", 1 - _median_saved(alone), "at most 0.3", why),
    ]  # fmt: skip


def _median_saved(ratio: list[Ratios]) -> float:
    return statistics.median(one.energy_saved for one in ratio)


def _beside(bench: PolicyBench, encoder: str, scenario: str, name: str) -> tuple[str, ...]:
    found = (ratios(bench, encoder, scenario, policy) for policy in BESIDE)
    return tuple(f"{statistics.median(getattr(r, name) for r in ratio):.3g}" if ratio else "" for ratio in found)


def _against_opus(bench: PolicyBench, encoder: str, scenario: str, policy: str, probe: float) -> list[Goal]:
    """Bytes against the cheapest Opus that is as accurate, up to what a probe over this many clips can resolve."""
    accuracy = bench.encoders[encoder].accuracy
    rates = [
        (_up(runs), name)
        for name, scored in accuracy.items()
        if name.startswith("opus-")
        and scored.probe >= probe - _SAME_PROBE
        and (runs := runs_of(bench, encoder, scenario, name))
    ]
    if not rates:
        return []
    cheapest, name = min(rates)
    share = _up(runs_of(bench, encoder, scenario, policy)) / cheapest
    return [Goal("bytes / Opus as accurate", "", share, "at most 1.0", f"{name}: {cheapest:.1f} MB/h up")]


def _bytes(runs: list[Figures]) -> dict[str, float]:
    """MB an hour up: the frames, and everything around them (headers of all layers, acknowledgements, presence)."""
    frames = statistics.median(
        sum(run.frame_bytes[1:]) * 3600 / max(run.times_s[-1] - run.times_s[0], 0.1) / 1e6 for run in runs
    )
    return {"frames": frames, "around them": max(0.0, _up(runs) - frames)}


def _up(runs: list[Figures]) -> float:
    return float(statistics.median(run.up_mb_per_hour for run in runs))


def _parts(parts: dict[str, float], unit: str) -> str:
    """The parts, the largest first: that is where to look if a goal is missed."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {value:.{0 if value >= 10 else 1}f} {unit}" for name, value in ordered)
