"""Measures StreamSplit against its alternatives, in network namespaces, and writes docs/proof.md.

    python -m tools.bench_lab [--quick] [--encoder mn04.pt] [--audio recordings/] [--scenario lte]
    python -m tools.bench_lab --from a/bench.json --from b/bench.json [--page proof-zero]

`--from` publishes measurements of `ssc bench run`, with further files as further repetitions; with `--page` (for
example, of another target) they get their own page in docs/, whose goals are not among the benchmarks. `--quick` does
one short run of each policy in `lte`; without it a scenario takes some 10 minutes for each encoder. If namespaces are
not permitted, it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime_server.harness.network import why_not
from runtime_server.lab.policy_bench import BenchConfig, PolicyBench, joined, read_bench, run_bench
from runtime_server.lab.proof.goals import BESIDE, Goal, goals, prompt_goals, thrifty_goals
from runtime_server.lab.proof.proof_page import write_page
from runtime_server.lab.proof.wins import Points, rows
from runtime_server.lab.scenarios import SCENARIOS, scenario_named
from tools.bench_pay import POINTS_OF
from tools.benchmarks import Section, publish

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_PAGE = "proof"
ENCODERS = ("resnet18", "mobilenet_v3_small")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; those of other benchmarks are left alone. Ends with exit code 2 and one line for what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_lab", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--encoder", action="append", default=[])
    parser.add_argument("--scenario", action="append", default=[])
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--from", dest="files", action="append", default=[], type=Path)
    parser.add_argument("--page", default=_PAGE)
    parser.add_argument("--prompt", help="scenario/policy of --from that is to be early, such as lte/cut:stem/64+exit.")
    parser.add_argument("--note", action="append", default=[], help="What was not played, and why; stands on the page.")
    parser.add_argument("--thrifty", help="That is to need little energy.")
    given, _ = parser.parse_known_args(arguments)
    rows = {"--prompt": given.prompt, "--thrifty": given.thrifty}
    published = [name for name, row in {**rows, "--note": given.note, "--page": given.page != _PAGE}.items() if row]
    if published and not given.files:
        parser.error(f"{published[0]}: is about measurements that are published, so give them with --from")
    if bool(given.prompt) != bool(given.thrifty):
        parser.error("--prompt and --thrifty: one section compares both, so give both or neither")
    for name, row in rows.items():
        if row and not re.fullmatch(r"[^/:]+/[^/:]+:.+", row):
            parser.error(f"{name} {row}: expected a scenario and a policy with a cut, such as lte/cut:stem/64+exit")
    return given


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    given = parse_args(arguments)
    if given.files:
        bench = joined([read_bench(path) for path in given.files])
        publish_bench(bench, given.page, given.note)
        if given.prompt:
            publish(rows_section(bench, given.prompt, given.thrifty))
        return
    if reason := why_not():
        print(f"not measured: {reason}")
        return
    config = BenchConfig(
        scenarios=tuple(scenario_named(name) for name in given.scenario or (["lte"] if given.quick else SCENARIOS)),
        encoders=tuple(given.encoder) or ENCODERS[: 1 if given.quick else None],
        audio=given.audio,
        seconds=10.0 if given.quick else given.seconds,
        repeats=1 if given.quick else given.repeats,
        clips_every=10 if given.quick else 1,
    )
    publish_bench(asyncio.run(run_bench(config, print)))


def publish_bench(bench: PolicyBench, page: str = _PAGE, notes: Sequence[str] = ()) -> None:
    """Write the page with its pictures and the figures for `ssc bench compare`, and add the goals to the benchmarks."""
    title = "The proof" if page == _PAGE else f"The proof on {bench.target}"
    write_page(bench, _DOCS / f"{page}.md", title, points(), notes)
    (_DOCS / f"{page}.json").write_bytes(bench.to_json())
    if page == _PAGE:
        publish(section(bench))


def rows_section(bench: PolicyBench, prompt: str, thrifty: str) -> Section:
    """Compare two policies of an encoder, each in the scenario in which it was played, with the paper's goals."""
    command = "python -m tools.bench_lab --from ... --prompt ... --thrifty ..."
    found = Section("pay", "Two rows of the proof", command, "rows")
    lost = points().get(ENCODERS[0], {})
    scenario, early = _played(prompt)
    held = prompt_goals(bench, ENCODERS[0], scenario, early)
    first = f"{_action(early).partition('/')[0].removesuffix('+exit')}+exit"
    final = _action(early).removesuffix("+exit")
    held += [_points_goal("points_lost_final", lost, final, 1), _points_goal("points_lost_first", lost, first, 4)]
    scenario, frugal = _played(thrifty)
    held += thrifty_goals(bench, ENCODERS[0], scenario, frugal)
    held.append(_points_goal("points_lost_thrifty", lost, _action(frugal).removesuffix("+exit"), 3))
    for goal in held:
        found.add(goal.name, goal.value, goal.goal, goal.why + _told_beside(goal))
    pages = [read_bench(path) for path in sorted(_DOCS.glob(f"{_PAGE}*.json"))]
    pages = [one for one in pages if one.link_is]  # earlier ones counted energy without the link's radio
    compared = [(one.target, row) for one in pages for row in rows(one, points())]
    won = [f"{row.encoder} on {target} over {row.scenario}" for target, row in compared if row.wins]
    where = ", ".join(won) or "none"
    what = f"rows of {len(compared)} in which the table pays: {where}; docs/proof*.md say why the others do not"
    found.add("wins", len(won), "at least 3", what)
    return found


def _played(row: str) -> tuple[str, str]:
    """Scenario and policy of `scenario/policy`."""
    scenario, _, policy = row.partition("/")
    return scenario, policy


def _action(policy: str) -> str:
    """The action of a policy that names one."""
    return policy.partition(":")[2]


def _points_goal(name: str, lost: Mapping[str, float], answer: str, most: int) -> Goal:
    """A goal on an answer's points. Raises KeyError if `tools.bench_pay` has not published them."""
    return Goal(name, "2.2", lost[answer], f"at most {most}", f"{answer}, clips of fold 5 of both sets")


def points() -> Points:
    """The points that `tools.bench_pay` has published."""
    pay = json.loads((_DOCS / "benchmarks.json").read_text())["pay"]
    return {name.removeprefix(POINTS_OF): of for name, of in pay.items() if name.startswith(POINTS_OF)}


def _told_beside(goal: Goal) -> str:
    beside = ", ".join(f"{other} {value}" for other, value in zip(BESIDE, goal.beside, strict=True) if value)
    return f"; the same of {beside}" if beside else ""


def section(bench: PolicyBench) -> Section:
    """The goals, for docs/benchmarks.md."""
    found = Section("proof", "The proof", bench.command)
    for encoder in bench.encoders:
        for goal in goals(bench, encoder):
            name = goal.name.replace(" / ", " to ").replace(" ", "_").lower()
            what = f"table in lte against server-only PCM: {goal.why}{_told_beside(goal)}"
            found.add(f"{encoder}.{name}", goal.value, goal.goal, what)
    found.detail("all policies, scenarios and parts", "[proof.md](proof.md)")
    for page in sorted(_DOCS.glob(f"{_PAGE}-*.md")):
        found.detail("the same on another device", f"[{page.name}]({page.name})")
    return found


if __name__ == "__main__":
    main()
