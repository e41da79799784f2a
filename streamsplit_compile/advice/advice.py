"""The costs of each way to run a bundle on a target and a link, and the recommended one (docs/advice.md).

Estimates apply the table's costs (predicted, or measured with a profile) to traces of the link, on a device with little
else to do. If a policy answers twice, the first answer is the exit's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.actions import ActionCosts, Encoding
from runtime_edge.formats.records.table import LOCAL, Limits, Reward
from runtime_edge.formats.wire import MAX_HEADER_BYTES
from runtime_edge.inference.profile import Profile
from streamsplit_compile.bundle.soundscape import soundscape
from streamsplit_compile.cost.radios import SURROUND_DOWN_BYTES, SURROUND_UP_BYTES, Radio, radio_on
from streamsplit_compile.cost.targets import Target
from streamsplit_compile.splitter.environment import (
    MOST_AGREEMENT_LOST,
    ActionOutcomes,
    Environment,
    close_enough,
    simulate,
    with_local,
)
from streamsplit_compile.splitter.policies import Actions, play, taken
from streamsplit_compile.splitter.pricing import bundle_actions, hop_seconds
from streamsplit_compile.splitter.raw_streams import with_stream
from streamsplit_compile.splitter.traces import FAMILIES, LORA, TraceModel, Traces, observe, synthetic_traces

DEVICE_ONLY, TABLE = "device only", "table"
STREAMS: tuple[tuple[str, Encoding, float], ...] = (
    ("PCM", "pcm16-stream", 0.0),
    ("FLAC", "flac", 0.0),
    ("Opus 6", "opus", 6.0),
    ("Opus 16", "opus", 16.0),
    ("Opus 24", "opus", 24.0),
)
"""Audio streams that can be sent instead of activations: name, encoding and kbit/s."""
KEPT_UP_BYTES, KEPT_DOWN_BYTES = 12, 4
"""Traffic for each window that is not shipped: heartbeats and pings (`python -m tools.bench_wire --only kept`)."""
TIE = 0.1
"""Reward difference, a hundredth of full agreement: of the policies this close to the best, the simplest wins."""
_MONTH_S = 30 * 86400.0
_LINKS = {"lora": LORA, **FAMILIES}
_TRACES, _WINDOWS = 32, 480
_LISTENED_S = 20.0


@dataclass(frozen=True)
class Estimate:
    """Estimates for one policy: means over windows."""

    policy: str
    """`device only`, `table`, a stream, or an action of the table."""
    first_ms: float
    """Time from a window's end to its first answer."""
    final_ms: float
    up_bytes: float
    """Counted at the network interface."""
    down_bytes: float
    above_idle_mj: float
    idle_mj: float
    """Energy of the board and radio at rest, over one hop."""
    agreement: float
    """Median cosine with the float32 encoder's embedding."""
    memory_mb: float
    reward: float
    """The reward without any learning value."""
    hop_s: float
    head: float | None = None
    """Share of labelled recordings that a head gets right from the last answers; None if there was no head."""
    head_first: float | None = None
    """The same share from the first answers."""

    def _a_month(self, share: float) -> float:
        return share * _MONTH_S / self.hop_s

    def gb_a_month(self, share: float = 1.0) -> float:
        """Traffic both ways, in GB (1e9 bytes), if the device listens for this share of the time."""
        return (self.up_bytes + self.down_bytes) * self._a_month(share) / 1e9

    def wh_a_month(self, share: float = 1.0) -> float:
        """Energy including idle power, in Wh. The device idles all the time and listens for this share of it."""
        return (self.above_idle_mj * share + self.idle_mj) * self._a_month(1.0) / 3.6e6

    def battery_hours(self, watt_hours: float, share: float = 1.0) -> float:
        """How many hours a battery lasts."""
        return watt_hours / max(self.wh_a_month(share), 1e-12) * _MONTH_S / 3600


@dataclass(frozen=True)
class Advice:
    """The estimates for all policies on one target and link."""

    target: str
    link: str
    estimates: tuple[Estimate, ...]
    provenance: str
    """Where the times come from: `predicted` or `measured`."""
    last_cut: str
    """The cut at which the device computes the embedding itself."""
    left_out: tuple[str, ...]
    """Policies that are not possible, each with the reason."""

    def of(self, policy: str) -> Estimate | None:
        """The estimate for a policy; None if it was left out."""
        return next((one for one in self.estimates if one.policy == policy), None)

    @property
    def best(self) -> Estimate:
        """The recommended policy: the simplest of those about as good as the best."""
        most = max(one.reward for one in self.estimates)
        good = [one for one in self.estimates if one.reward >= most - TIE]
        names = [one.policy for one in good]
        for simple in (DEVICE_ONLY, TABLE):
            if simple in names:
                return good[names.index(simple)]
        return max(good, key=lambda one: one.reward)

    def sentence(self, share: float = 1.0) -> str:
        """The recommendation and its closest alternative, if the device listens for this share of the time."""
        best, where = self.best, f"{self.target} over {self.link}"
        others = [one for one in self.estimates if one.policy not in (DEVICE_ONLY, best.policy)]
        other = max(others, key=lambda one: one.reward) if others else None
        if best.policy == DEVICE_ONLY:
            do = "run everything on the device (`ssc edge run --min-cut local`)"
            said = [f"{where}: {do}: {_told(best, share)}."]
            table = self.of(TABLE)
            if other is not None and other.policy != TABLE:
                said.append(f"Of what is shipped {other.policy} comes next: {_told(other, share)}.")
            if table is not None:
                learn = "If the server is to learn, leave the choice to the table, as devices do by default"
                said.append(f"{learn}: {_told(table, share)}.")
            return " ".join(said)
        said = [f"{where}: {_what_to_do(best.policy, self.last_cut)}: {_told(best, share)}."]
        alone = self.of(DEVICE_ONLY)
        nexts = [one for one in (other, alone) if one is not None]
        if nexts:
            following = max(nexts, key=lambda one: one.reward)
            said.append(f"The next best is {following.policy}: {_told(following, share)}.")
        return " ".join(said)


def _told(one: Estimate, share: float) -> str:
    """An estimate's figures in a few words."""
    energy, gigabytes = f"{one.above_idle_mj:.0f} mJ a window above idle", f"{one.gb_a_month(share):.2g} GB a month"
    first = "" if round(one.first_ms) == round(one.final_ms) else f"{one.first_ms:.0f} ms to the first answer, "
    right = "" if one.head is None else f", {one.head:.1%} of clips right"
    return f"{first}{one.final_ms:.0f} ms, {energy}, {gigabytes}, agreement {one.agreement:.3f}{right}"


def _what_to_do(policy: str, last_cut: str) -> str:
    if policy == TABLE:
        return "let the table choose, as devices do by default"
    name, _, kbps = policy.partition(" ")
    if name == "Opus":
        return f"send Opus (`ssc edge run --audio-format opus --opus-kbps {kbps}`)"
    if name in {"PCM", "FLAC"}:
        return f"send {name} (`ssc edge run --audio-format {'flac' if name == 'FLAC' else 'pcm16-stream'}`)"
    if policy == last_cut:
        return f"run everything on the device and ship its embeddings (`ssc edge run --min-cut {last_cut}`)"
    return f"cut at {policy} and nowhere else"


def advise(
    bundle: Bundle, targets: Iterable[Target], link: str, profile: Profile | None = None, seed: int = 0
) -> list[Advice]:
    """Estimate all policies on targets that the bundle was compiled for, over a link given by name or TOML file.

    `profile` has times measured on one of the targets. Raises UsageError when the bundle was not compiled for a target
    or there is no such link.
    """
    found, streams = [], None
    for target in targets:
        measured = profile if profile is not None and profile.target == target.name else None
        costs = bundle_actions(bundle.manifest, target.name, measured)
        streams = streams or _streams(costs, bundle)
        found.append(_advise(bundle, target, link, costs, *streams, "measured" if measured else "predicted", seed))
    return found


def _advise(
    bundle: Bundle,
    target: Target,
    link: str,
    costs: Sequence[ActionCosts],
    streams: Sequence[ActionCosts],
    missing: Sequence[str],
    provenance: str,
    seed: int,
) -> Advice:
    radio, hop_s, left_out = radio_on(target, link), hop_seconds(bundle.manifest), list(missing)
    sent = [
        msgspec.structs.replace(costs[0], name=one.name, encoding=one.encoding, bytes=one.bytes, quality=one.quality)
        for one in streams
    ]
    reward, offered = Reward(rho=0.0), close_enough(costs)
    if far := [one.name for one in costs if one not in offered]:
        left_out.append(f"{', '.join(far)}: agrees less by more than {MOST_AGREEMENT_LOST:g} than without a bottleneck")
    environment = with_local(Environment((*offered, *sent), radio.uplink(hop_s), reward, Limits(), hop_s))
    traces = link_traces(radio.name, seed)
    outcome, names = simulate(environment, traces), [action.name for action in environment.actions]
    answered = _answered_bytes(bundle)
    found = []
    for place, action in enumerate(environment.actions):
        policy, always = DEVICE_ONLY if action.name == LOCAL else action.name, np.full(traces.shape, place)
        found.append(_estimate(policy, environment, outcome, always, radio, target, answered))
    table = bundle.table(target.name)
    own = Environment(table.costs, radio.uplink(hop_s), reward, table.limits, hop_s)
    chosen = play(table, observe(traces))
    found.append(_estimate(TABLE, own, simulate(own, traces), chosen, radio, target, answered))
    fitting = []
    for one in found:
        lacking = _lacking(one, target, float(traces.bandwidth_mbps.mean()))
        left_out += [f"{one.policy}: {lacking}"] if lacking else []
        fitting += [] if lacking else [one]
    if not fitting:
        raise UsageError(f"{target.name} over {radio.name}: nothing fits: {'; '.join(left_out)}")
    ends = {DEVICE_ONLY, TABLE, *(name for name, *_ in STREAMS), names[0]}
    kept = [one for one in fitting if one.policy in ends or not any(_beats(other, one) for other in fitting)]
    return Advice(target.name, radio.name, tuple(kept), provenance, costs[-1].name, tuple(left_out))


def link_traces(link: str, seed: int) -> Traces:
    """Traces of a device with little else to do on the named link; an unknown name gets the broadest family."""
    model: TraceModel = _LINKS.get(link, FAMILIES["wide"])
    return synthetic_traces(replace(model, cpu_levels=(0.05,)), _TRACES, _WINDOWS, seed)


def _lacking(one: Estimate, target: Target, link_mbps: float) -> str | None:
    """The resource that a policy needs more of than there is; None if it has enough."""
    if one.memory_mb > target.memory.ram_mb.value:
        return f"takes {one.memory_mb:.0f} MB of memory, {target.name} has {target.memory.ram_mb.value:.0f}"
    needed = one.up_bytes * 8 / one.hop_s / 1e6
    return f"needs {needed:.2g} Mbit/s, the link has {link_mbps:.2g}" if needed > link_mbps else None


def _streams(costs: Sequence[ActionCosts], bundle: Bundle) -> tuple[list[ActionCosts], list[str]]:
    """The action of each stream, and the reason for each one whose library is missing."""
    heard = soundscape(_LISTENED_S, bundle.manifest.info.front_end.sample_rate, seed=0)
    found, left_out = [], []
    for name, encoding, kbps in STREAMS:
        try:
            stream = with_stream(costs, bundle, encoding, kbps, heard)[0]
        except UsageError as exc:
            left_out.append(f"{name}: {exc}")
        else:
            found.append(msgspec.structs.replace(stream, name=name))
    return found, left_out


def _answered_bytes(bundle: Bundle) -> int:
    """Bytes of an embedding in a reply: one for each value, plus their scale."""
    return int(np.prod(bundle.manifest.info.cuts[-1].shape)) + 4


def _estimate(
    policy: str,
    environment: Environment,
    outcome: ActionOutcomes,
    chosen: Actions,
    radio: Radio,
    target: Target,
    answered: int,
) -> Estimate:
    """The estimate for taking the actions `chosen` (trace, window)."""
    actions = environment.actions
    ships = np.array([action.bytes > 0 for action in actions])[chosen]
    asks = np.array([action.teaches for action in actions])[chosen]
    payload = environment.bytes[chosen] - MAX_HEADER_BYTES
    up = np.where(ships, payload + SURROUND_UP_BYTES, KEPT_UP_BYTES)
    embeddings = np.where(asks, answered, 0)
    down = np.where(ships, SURROUND_DOWN_BYTES + embeddings, KEPT_DOWN_BYTES)
    received_mj = radio.receive_mj_per_kb.value * embeddings / 1000
    idle_w = target.power.idle_w.value + radio.idle_w.value
    return Estimate(
        policy=policy,
        first_ms=float(taken(outcome.first_ms, chosen).mean()),
        final_ms=float(taken(outcome.final_ms, chosen).mean()),
        up_bytes=float(up.mean()),
        down_bytes=float(down.mean()),
        above_idle_mj=float((taken(outcome.energy_mj, chosen) + received_mj).mean()),
        idle_mj=idle_w * environment.hop_s * 1e3,
        agreement=float(taken(outcome.quality, chosen).mean()),
        memory_mb=max(actions[place].memory_mb for place in np.unique(chosen)),
        reward=float(taken(outcome.reward, chosen).mean()),
        hop_s=environment.hop_s,
    )


def _beats(one: Estimate, other: Estimate) -> bool:
    """Whether the first estimate is no worse in anything and better in something."""
    costs, others = (
        (each.final_ms, each.up_bytes + each.down_bytes, each.above_idle_mj, -each.agreement) for each in (one, other)
    )
    return costs != others and all(a <= b for a, b in zip(costs, others, strict=True))


def sources(given: Iterable[Advice]) -> list[str]:
    """Where the figures come from, a line each."""
    times = {advice.provenance for advice in given}
    return [
        f"times and energy of blocks: {' and '.join(sorted(times))} for the target (`ssc inspect`, `ssc profile`)",
        "link: synthetic traces of it; radio: the published figures in its file; what surrounds a window: measured "
        "(docs/benchmarks.md)",
        "agreement: measured when the bundle was compiled, of streams on a soundscape; heartbeats' energy is left out",
    ]
