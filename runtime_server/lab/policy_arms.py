"""The policies that are compared: the table and device options of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.actions import ActionCosts, action_name, costs_digest
from runtime_edge.formats.records.table import LOCAL, SplitterTable, StateAxis
from runtime_edge.formats.records.table_values import as_stored, q_rows
from runtime_edge.policy.reward import MAX_LOAD
from runtime_server.lab.accuracy import PCM
from runtime_server.lab.scenarios import Playable
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.splitter.environment import RULE_FULL_MBPS, environment_of, heuristic_rule, simulate
from streamsplit_compile.splitter.policies import Array, rows_of
from streamsplit_compile.splitter.pricing import bundle_actions, table_for
from streamsplit_compile.splitter.qlearning import estimate_model, value_iteration
from streamsplit_compile.splitter.traces import observe

FLAC = "flac"
OURS, DEVICE_ONLY = "table", "device-only"
"""The names of two policies."""
OPUS_KBPS = (6, 12, 16, 24)
_CPU_EDGES = tuple(np.round(np.linspace(0.1, MAX_LOAD, 9), 3).tolist())
_MBPS_EDGES = tuple(np.round(np.linspace(0.5, RULE_FULL_MBPS, 16), 3).tolist())
_TRACES, _WINDOWS = 64, 240
_PACKED = ("--deadline-ms", "4000")
"""Windows of up to this many milliseconds are sent in one message."""


@dataclass(frozen=True)
class Policy:
    """One policy: a splitter table and the device options that go with it."""

    name: str
    table: SplitterTable
    options: tuple[str, ...] = ()
    """Options of `ssc edge run`."""
    answers: tuple[str, str] | None = None
    """What computes the first and the last embedding of every window (`accuracy.Answers`); None for a policy that
    chooses."""
    usual: bool = True
    """Whether it is played if no policies are named."""


def all_policies(bundle: Bundle, target: str, scenario: Playable, seed: int) -> list[Policy]:
    """Server-only in each encoding, device-only, each fixed action, the rule, a table, the optimum.

    The table is the bundle's, trained again for the radio of the scenario's link. A fixed action is a cut, with or
    without a width of its bottleneck, answered first by its exit or not. Fixed actions that are not in the table are
    played only by name, and so are policies of a device that may delay its windows (`packed:`).
    """
    table = table_for(bundle.manifest, load_target(target), scenario.link, seed, "ssc bench")
    actions = bundle_actions(bundle.manifest, target)
    raw, last = only(table, actions[0]), only(table, actions[-1])
    streams: list[tuple[str, tuple[str, ...]]] = [
        (PCM, ("--audio-format", "pcm16-stream")),
        (FLAC, ("--audio-format", "flac")),
    ]
    streams += [(f"opus-{kbps}", ("--audio-format", "opus", "--opus-kbps", str(kbps))) for kbps in OPUS_KBPS]
    found = [Policy(name, raw, options, (_samples(name),) * 2) for name, options in streams]
    found += [Policy(DEVICE_ONLY, last, ("--min-cut", LOCAL), (LOCAL, LOCAL))]
    found += [
        Policy(f"cut:{one.name}", only(table, one), (), _answers(one), one.name in table.actions) for one in actions[1:]
    ]
    found += [
        Policy(f"packed:{one.name}", only(table, one), _PACKED, _answers(one), usual=False)
        for one in actions[1:]
        if one.teaches
    ]
    found += [Policy("rule", rule(table)), Policy(OURS, table), Policy("optimum", optimum(table, scenario, seed))]
    return found


def _samples(stream: str) -> str:
    """The samples that determine the embedding: those of FLAC equal PCM, because FLAC is lossless."""
    return PCM if stream == FLAC else stream


def _answers(action: ActionCosts) -> tuple[str, str]:
    final = LOCAL if action.answer == "device" else action_name(action.cut, action.width)
    return (action_name(action.cut, 0, "exit") if action.answer == "exit" else final), final


def chosen_policies(policies: Sequence[Policy], names: Sequence[str]) -> list[Policy]:
    """The named policies in the order of `policies`, or else the usual ones. Raises UsageError for an unknown name."""
    known = [policy.name for policy in policies]
    for name in names:
        if name not in known:
            raise UsageError(f"no policy {name!r}; there are {', '.join(known)}")
    return [policy for policy in policies if (policy.name in names if names else policy.usual)]


def always(table: SplitterTable, name: str) -> SplitterTable:
    """A table that takes one of its actions in every state."""
    return only(table, table.costs[table.actions.index(name)])


def only(table: SplitterTable, action: ActionCosts) -> SplitterTable:
    """The table with a single action, which it need not contain."""
    return msgspec.structs.replace(
        table,
        state=(StateAxis(name="bandwidth_mbps", edges=()),),
        costs=(action,),
        costs_digest=costs_digest([action], table.uplink),
        upgraded_from=None,
        q=((1.0,),),
        hysteresis=0.0,
        dwell=1,
        probe_rate=0.0,
        created_by=f"always {action.name}",
    )


def rule(table: SplitterTable) -> SplitterTable:
    """The heuristic rule of docs/method.md, section 6, as a table with fine bins of load and bandwidth."""
    axes = (StateAxis(name="cpu", edges=_CPU_EDGES), StateAxis(name="bandwidth_mbps", edges=_MBPS_EDGES))
    cpu, mbps = np.meshgrid(_middles(_CPU_EDGES), _middles(_MBPS_EDGES), indexing="ij")
    actions = heuristic_rule(environment_of(table), cpu.ravel(), mbps.ravel())
    return _with_q(table, axes, np.eye(len(table.actions))[actions], "heuristic rule")


def optimum(table: SplitterTable, scenario: Playable, seed: int) -> SplitterTable:
    """The best policy on the table's own bins for this scenario, by value iteration."""
    traces = scenario.traces(_TRACES, _WINDOWS, seed)
    rows = rows_of(observe(traces), table.state)
    transition, reward, visits = estimate_model(rows, simulate(environment_of(table), traces).reward, len(table.q))
    q = value_iteration(transition, reward, table.discount)
    # States that the scenario's traces never visit keep the values of the trained table.
    known = np.asarray(visits) > 0
    q = np.where(known[:, None], q, np.asarray(table.q))
    return _with_q(table, table.state, q, f"optimum for {scenario.name}")


def _with_q(table: SplitterTable, axes: tuple[StateAxis, ...], q: Array, created_by: str) -> SplitterTable:
    return msgspec.structs.replace(
        table,
        state=axes,
        upgraded_from=None,
        q=q_rows(as_stored(q)),
        hysteresis=0.0,
        dwell=1,
        probe_rate=0.0,
        created_by=created_by,
    )


def _middles(edges: Sequence[float]) -> Array:
    inner = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    return np.array([edges[0] / 2, *inner, edges[-1]])
