"""A bench as a page: goals, tables, pictures, and how it was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from runtime_server.lab.policy_arms import DEVICE_ONLY, OURS
from runtime_server.lab.policy_bench import PolicyBench
from runtime_server.lab.proof.goals import BESIDE, DIFFERS, Goal, goals
from runtime_server.lab.proof.measured_advice import measured_advice
from runtime_server.lab.proof.proof_plots import draw
from runtime_server.lab.proof.proof_report import (
    AGAINST,
    BEHAVIOUR,
    COSTS,
    QUALITY,
    SERVER_ONLY,
    TIMES,
    as_text,
    behaviour,
    costs,
    policies_of,
    quality,
    ratios,
    scored,
    spread,
    times,
)
from runtime_server.lab.proof.wins import PHIS, Points, best_other, rows


def write_page(
    bench: PolicyBench,
    path: Path,
    title: str = "The proof",
    points: Points | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page, with its pictures beside it. `points` are those of `wins.rows`; `notes` follow its rows."""
    pairs = list(dict.fromkeys((run.encoder, run.scenario) for run in bench.runs))
    lines = [f"# {title}", "", *_how(bench), "", "## Against the paper", "", *_headline(bench), ""]
    lines += _where_it_pays(bench, points)
    lines += [*(f"- {note}" for note in notes), ""] if notes else []
    for encoder, scenario in pairs:
        lines += [
            f"## {encoder}, {scenario}",
            "",
            _made(bench, scenario),
            "",
            *_table(TIMES, times(bench, encoder, scenario)),
            "",
            *_table(COSTS, costs(bench, encoder, scenario)),
            "",
        ]
        lines += [*_table(QUALITY, quality(bench, encoder, scenario)), ""]
        lines += [*_table(BEHAVIOUR, behaviour(bench, encoder, scenario)), ""]
        lines += [f"![{picture.stem}]({picture.name})" for picture in draw(bench, encoder, scenario, path)]
        if (advice := measured_advice(bench, encoder, scenario)) is not None:
            lines += ["", f"Of these policies, for {advice.sentence()}"]
        lines += ["", *_reactions(bench, encoder, scenario), *_repeatable(bench, encoder, scenario), ""]
    path.write_text("\n".join(lines).rstrip() + "\n")


def _how(bench: PolicyBench) -> list[str]:
    where = ", ".join(f"{name} {value}" for name, value in bench.machine.items())
    counts = sorted(set(Counter((run.encoder, run.scenario, run.policy) for run in bench.runs).values())) or [0]
    often = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    long = f"{bench.shortest_s:g} to {bench.seconds:g}" if bench.shortest_s else f"{bench.seconds:g}"
    return [
        "```sh",
        *bench.command.split("; "),
        "```",
        "",
        f"{bench.created}: runs of {long} s, {often} of each, policies in turn, seed {bench.seed}. "
        f"{bench.audio[0].upper()}{bench.audio[1:]}. Measured on: {where}.",
        "",
        f"Latency is from the end of a window to its embedding outside the device's process. Bytes are those of "
        f"{bench.bytes_are}. {_pace(bench)} {_energy(bench)} Latency, bytes and energy in the last columns are against "
        "`pcm16`: 16-bit samples, each sent once. `pcm16`, `flac` and `opus` are streams: a window ships its new half.",
        "",
        "- `p50 ms` to `p99 ms` describe last answers, `first p50` and `first p99` first answers, if an exit gives "
        "them; `first` and `latency` are how many times faster each is than the baseline's. Devices here always "
        "report the server's answer after an exit's.",
        "- `fidelity`: mean cosine with the float32 encoder's embedding, and the worst window's. Opus delays audio "
        "by 6.5 ms, as its decoder does, which lowers its fidelity.",
        "- `probe`, `P@10`, `silhouette`: over labelled clips, by the code that devices and servers run. Encoders "
        "given by name have random weights, so these figures show what the wire costs, not what the encoder could "
        "do. The probe is fitted to embeddings of the same policy, `head` to those of the whole encoder, both on "
        f"other folds; `head first` is that head on first answers.{_judged(bench)}",
        "- `by server`: windows that the server finished; `fell back`: windows that the device finished because no "
        "answer came in time.",
        "- `reaction s`: the longest time from a step of the link to the final cut.",
        "- `processor`: share of one processor that the device used. `queued`: share of the time in which the device "
        "was ready to run but others had its processor. In scenarios without load, more than a few percent means "
        "that this machine was busy, and that the device looks slower than it is.",
    ]


def _judged(bench: PolicyBench) -> str:
    if bench.bundle_given:
        heard = "" if bench.fold is None else f" Clips heard and judged are of fold {bench.fold}."
        return f"{heard} The bundle was compiled beforehand; its manifest names what it was calibrated on."
    if bench.fold is None:
        return " Bottlenecks and exits are fitted to some of the same recordings, without their labels."
    return f" Clips heard and judged are of fold {bench.fold}; bottlenecks and exits are fitted to the others."


def _pace(bench: PolicyBench) -> str:
    """How much the device was slowed down, and on what basis."""
    times = f"times measured on such a device ({bench.measured_by})" if bench.measured_by else "predicted times"
    python = (
        f"everything else it does takes {bench.python_factor:g} times as long as here"
        if bench.python_factor
        else "the Python around the blocks is not slowed"
    )
    link = f" The link is {bench.link_is}." if bench.link_is else ""
    return f"The device computes at the pace of {bench.target}'s cost table ({times}); {python}.{link}"


def _energy(bench: PolicyBench) -> str:
    if not any(scenario.link for scenario in bench.scenarios.values()):
        return (
            f"Energy is modelled: {bench.target}'s figures for the blocks that ran, for encoding, and a Wi-Fi radio's "
            "for the bytes sent; receiving is not in it."
        )
    return (
        f"Energy is modelled: {bench.target}'s figures for the blocks that ran and for encoding, and published figures "
        "of the link's radio (docs/splitter.md) for all that passed, when it passed, both ways, with its tail. `mJ` is "
        "above idle; `with idle` adds what board and radio use at rest for as long as a window lasts."
    )


def _made(bench: PolicyBench, scenario: str) -> str:
    """One line above a scenario's tables: the link, its radio, and how the link was emulated."""
    played = bench.scenarios.get(scenario)
    if played is None:
        return ""
    radio = f"; radio: {played.link}" if played.link else ""
    return f"{played.what}{radio}{f'; made as {bench.link_is}' if bench.link_is else ''}"


def _headline(bench: PolicyBench) -> list[str]:
    found = [(encoder, goal) for encoder in bench.encoders for goal in goals(bench, encoder)]
    if not found:
        return ["Not measured: this needs the scenario lte with the policies pcm16 and table."]
    table = [
        [encoder, goal.name, goal.paper, f"{goal.value:.3g}", *goal.beside, _verdict(goal), goal.why]
        for encoder, goal in found
    ]
    return [
        *_table(("encoder", "number, lte", "paper", "here", *BESIDE, "goal", "made of"), table),
        "",
        *_against_baselines(bench),
        "",
        *(f"- {text}" for text in DIFFERS),
    ]


def _where_it_pays(bench: PolicyBench, points: Points | None) -> list[str]:
    """A row for each encoder and link for which the table can be compared."""
    found = []
    judged = rows(bench, points)
    for row in judged:
        against = (best_other(row.rewards[phi]) for phi in PHIS)
        rewards = (
            f"{row.rewards[phi][OURS]:.2f}; {name} {value:.2f}"
            for phi, (name, value) in zip(PHIS, against, strict=True)
        )
        advice = measured_advice(bench, row.encoder, row.scenario)
        advised = advice.best.policy if advice else ""
        lost = "; ".join("unknown" if one is None else f"{one:.1f}" for one in (row.lost, row.lost_first))
        found.append([row.encoder, row.scenario, *rewards, lost, "; ".join(row.reasons) or "**yes**", advised])
    if not found:
        return []
    columns = ("encoder", f"{bench.target} on", *(f"reward of table, best other, phi {phi:g}" for phi in PHIS))
    return [
        "## Where cutting pays",
        "",
        f"The table pays in {sum(row.wins for row in judged)} of {len(found)} rows. In a row that pays "
        "its reward is above that of every alternative that was played, it is better than each server-only way in two "
        "of first and last answers, bytes and energy, and than the device alone in first answers and energy, or by a "
        "point of accuracy; and it loses a point at most. Rewards are of what was measured, without a value for what "
        "the server learns, which all that ship would have.",
        "",
        *_table((*columns, "points lost: last answers; first", "does it pay", "advised"), found),
        "",
    ]


def _against_baselines(bench: PolicyBench, scenario: str = "lte") -> list[str]:
    """The table against each server-only policy and device-only; the first row has the paper's own comparison."""
    found = [["paper", "server-only", "", "up to 4.7x", "-77.1%", "", "-52.3%", "2.2"]]
    for encoder in bench.encoders:
        own = scored(bench, encoder, scenario, OURS)
        for name in (*SERVER_ONLY, DEVICE_ONLY):
            if ratio := ratios(bench, encoder, scenario, OURS, name):
                base = scored(bench, encoder, scenario, name)
                lost = f"{100 * (base.probe - own.probe):.1f}" if own and base else ""
                found.append([encoder, name, *as_text(ratio), lost])
    columns = ("encoder", "the table against", *AGAINST, "points of accuracy lost")
    return _table(columns, found)


def _verdict(goal: Goal) -> str:
    return f"{goal.goal}, met" if goal.met else f"{goal.goal}, **missed** by {goal.missed_by:.3g}"


def _reactions(bench: PolicyBench, encoder: str, scenario: str) -> list[str]:
    found = [
        reaction
        for run in bench.runs
        if (run.encoder, run.scenario, run.policy) == (encoder, scenario, OURS)
        for reaction in run.reaction_s
    ]
    if not found:
        return ["No step called for another cut of the table."]
    return [f"The table answered {len(found)} steps with another cut, within {max(found):.1f} s at most."]


def _repeatable(bench: PolicyBench, encoder: str, scenario: str) -> list[str]:
    """How much the ratios of repetitions differ, for the worst policy."""
    worst = (0.0, "")
    for policy in policies_of(bench, encoder, scenario):
        found = ratios(bench, encoder, scenario, policy)
        if len(found) > 1:
            differs = max(
                spread(r.latency for r in found),
                spread(1 - r.bytes_saved for r in found),
                spread(1 - r.energy_saved for r in found),
            )
            worst = max(worst, (differs, policy))
    return [f"Repetitions differ by at most {worst[0]:.1%} in a ratio (`{worst[1]}`)."] if worst[1] else []


def _table(columns: Sequence[str], found: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(row)} |" for row in found]
