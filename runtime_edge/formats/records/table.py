"""The splitter table, a file a person can read: which cut to take in which state (docs/tables.md).

A table (`streamsplit.table/1`, JSON, at most 64 KiB) has one row for each combination of state bins and in it
one Q value for each action: a cut of the bundle by name, or `local` (run everything, ship nothing). It also holds
what it was trained on: each action's costs, the uplink, the reward and the limits.

    table = SplitterTable.from_json(data, "tables/rpi4.json")
    table.check_cuts([cut.name for cut in manifest.info.cuts])

`SplitterTable.from_json(table.to_json(), ...) == table`; runtime_edge.policy.splitter uses it.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from runtime_edge.errors import TableError
from runtime_edge.formats.strict import Name, Strict, decode

MAX_TABLE_BYTES = 64 << 10
LOCAL = "local"

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
Cost = Annotated[float, Meta(ge=0, le=1e9)]
StateName = Literal["uncertainty", "cpu", "bandwidth_mbps", "rtt_ms", "temperature_c", "battery"]


class StateAxis(Strict, frozen=True):
    """A state variable in bins: bin i holds `edges[i-1] <= value < edges[i]`, one bin more than edges."""

    name: StateName
    edges: Annotated[tuple[float, ...], Meta(max_length=63)]


class Reward(Strict, frozen=True):
    """docs/method.md, section 6: `alpha * (A + rho * u) - beta * Lat / t_max_ms - eta * E / e_budget_mj`."""

    alpha: Weight = 10.0
    beta: Weight = 5.0
    eta: Weight = 3.0
    t_max_ms: Annotated[float, Meta(gt=0, le=1e6)] = 200.0
    e_budget_mj: Annotated[float, Meta(gt=0, le=1e6)] = 100.0
    rho: Weight = 0.2
    """Worth of a window the server can learn from, for each unit of uncertainty."""


class ActionCosts(Strict, frozen=True):
    """One action: a cut, or `local`. Costs of one window on an idle device."""

    name: Name
    device_ms: Cost
    device_mj: Cost
    bytes: Annotated[int, Meta(ge=0, le=1 << 31)]
    """Payload and header."""
    server_ms: Cost
    quality: Annotated[tuple[Annotated[float, Meta(ge=-1, le=1)], ...], Meta(min_length=1, max_length=16)]
    """A(k, u): agreement with the float32 encoder, in equally wide bins of uncertainty over [0, 1]."""
    teaches: bool
    """Whether the server can train on what is shipped: a cut before the last."""
    memory_mb: Cost = 0.0
    """Working memory of the prefix."""


class Uplink(Strict, frozen=True):
    """What shipping costs a device, whatever is shipped."""

    mj_per_kb: Cost
    transmit_w: Cost
    deadline_ms: Annotated[float, Meta(gt=0, le=1e6)] = 1000.0
    """A device that has no answer after this long runs the rest itself."""


class Limits(Strict, frozen=True):
    """Caps that training keeps beside the reward; None is no cap. The prices are the multipliers that keep them."""

    mb_per_hour: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """In any hour; the device holds itself to it (`Allowance`)."""
    latency_p95_ms: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    memory_mb: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    min_cut: Name | None = None
    """Privacy floor: no action before this cut."""
    price_per_kb: Weight = 0.0
    """Reward that 1000 bytes cost."""
    price_late: Weight = 0.0
    """Reward that a window later than `latency_p95_ms` costs."""


class Allowance(NamedTuple):
    """A cap on bytes in any hour as a token bucket. It begins full: BURST_SHARE of an hour may go at once."""

    size: float
    """Bytes it holds at most."""
    refill: float
    """Bytes a window adds."""


BURST_SHARE = 1 / 12


def allowance(limits: Limits, hop_s: float) -> Allowance:
    """Bucket and refill together make at most the cap in an hour; infinite without one."""
    cap = math.inf if limits.mb_per_hour is None else limits.mb_per_hour * 1e6
    return Allowance(cap * BURST_SHARE, cap * (1 - BURST_SHARE) * hop_s / 3600)


def cut_position(action: str, cut_names: Sequence[str]) -> int:
    """Index of an action's cut; `local` counts as one past the last cut."""
    return len(cut_names) if action == LOCAL else cut_names.index(action)


class SplitterTable(Strict, frozen=True, kw_only=True):
    """A whole table file. Building one that does not hold together raises TableError naming the field."""

    format: Literal["streamsplit.table/1"] = "streamsplit.table/1"
    target: Name
    encoder: Name
    """Id of the encoder it was trained for."""
    created_by: Name
    costs: Annotated[tuple[ActionCosts, ...], Meta(min_length=1, max_length=256)]
    """The actions: cuts in cut order, then perhaps `local`."""
    uplink: Uplink
    reward: Reward
    limits: Limits
    discount: Annotated[float, Meta(ge=0, lt=1)]
    hop_s: Annotated[float, Meta(gt=0, le=3600)]
    """Seconds from one window to the next."""
    state: Annotated[tuple[StateAxis, ...], Meta(min_length=1, max_length=6)]
    hysteresis: Weight
    """Units of Q another cut must be better by before the device changes."""
    dead_band: Annotated[float, Meta(ge=0, le=0.5)]
    """A bin is left only when the value is past its edge by this share of the edge."""
    dwell: Annotated[int, Meta(ge=0, le=3600)]
    """Windows a cut is kept at least, unless link or load have moved to another bin."""
    probe_rate: Annotated[float, Meta(ge=0, le=0.2)]
    """Share of windows shipped at an earlier cut than chosen, so that early blocks learn."""
    costs_digest: Digest
    """Of `costs` and `uplink`: the cost table it was trained on."""
    bundle: Digest
    """Of the manifest it was trained for. Later generations with the same cuts take the table too."""
    bundle_cuts: Digest
    """`cuts_digest` of the bundle's cut names."""
    metrics: Annotated[dict[Name, float], Meta(max_length=64)]
    """On held-out traces."""
    policy: tuple[Annotated[int, Meta(ge=0)], ...]
    """Best action of each row; the last state variable changes fastest."""
    q: tuple[tuple[float, ...], ...]
    """Q[row][action], in discounted reward."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions."""
        return tuple(action.name for action in self.costs)

    @property
    def action_bytes(self) -> tuple[int, ...]:
        """Bytes of each action's frame."""
        return tuple(action.bytes for action in self.costs)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical bytes."""
        return "sha256:" + hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes, source: str) -> SplitterTable:
        """Read and check a table. Raises TableError, one line that names `source` and the field."""
        return decode(data, cls, source, MAX_TABLE_BYTES, TableError)

    def to_json(self) -> bytes:
        """Canonical bytes, one row of Q and one action a line. Raises TableError when they are too many."""
        canonical = msgspec.convert(msgspec.to_builtins(self), SplitterTable)  # 1 becomes 1.0
        fields = msgspec.to_builtins(canonical)
        lines = []
        for name in self.__struct_fields__:
            if name in ("q", "costs"):
                rows = ",\n  ".join(_compact(row) for row in fields[name])
                lines.append(f'"{name}":[\n  {rows}]')
            else:
                lines.append(f'"{name}":{_compact(fields[name])}')
        data = ("{" + ",\n ".join(lines) + "}\n").encode()
        if len(data) > MAX_TABLE_BYTES:
            raise TableError(
                f"q: {len(self.q)} rows of {len(self.actions)} actions make {len(data)} bytes, a table has "
                f"at most {MAX_TABLE_BYTES}; use fewer bins or fewer cuts"
            )
        return data

    def lookup(self, state: Mapping[str, float]) -> int:
        """The row of a state; NaN falls into the last bin. Raises TableError when a variable is missing."""
        row = 0
        for axis in self.state:
            value = state.get(axis.name)
            if value is None:
                raise TableError(f"the table needs the state variable {axis.name}, which is not measured here")
            row = row * (len(axis.edges) + 1) + bisect_right(axis.edges, value)
        return row

    def check_cuts(self, cut_names: Sequence[str]) -> None:
        """Raise TableError unless the table was made for a bundle with exactly these cuts, in this order."""
        for action in self.actions:
            if action != LOCAL and action not in cut_names:
                raise TableError(f"costs: the bundle has no cut {action!r}, only {', '.join(cut_names)}")
        if self.bundle_cuts != cuts_digest(cut_names):
            raise TableError("bundle_cuts: the table was trained for a bundle with other cuts; train it again")
        positions = [cut_position(action, cut_names) for action in self.actions]
        if positions != sorted(positions):
            raise TableError("costs: not in the order of the bundle's cuts")


def cuts_digest(cut_names: Iterable[str]) -> str:
    """`sha256:<hex>` over the names of a bundle's cuts, in order."""
    return "sha256:" + hashlib.sha256(_compact(list(cut_names)).encode()).hexdigest()


def costs_digest(costs: Iterable[ActionCosts], uplink: Uplink) -> str:
    """`sha256:<hex>` over what every action costs."""
    fields = msgspec.to_builtins((list(costs), uplink))
    canonical = msgspec.convert(fields, tuple[list[ActionCosts], Uplink])  # 1 becomes 1.0
    return "sha256:" + hashlib.sha256(_compact(msgspec.to_builtins(canonical)).encode()).hexdigest()


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _check(table: SplitterTable) -> None:
    for problem in _problems(table):
        raise TableError(problem)


def _problems(table: SplitterTable) -> Iterator[str]:
    """What msgspec's types cannot say, in the order of the fields."""
    actions = len(table.costs)
    if len(set(table.actions)) != actions:
        yield "costs: a name stands twice"
    if any(action.name == LOCAL and (action.bytes or action.teaches) for action in table.costs):
        yield "costs: local ships nothing, so its bytes are 0 and it teaches nothing"
    if table.costs_digest != costs_digest(table.costs, table.uplink):
        yield "costs_digest: not that of costs and uplink"
    if len({axis.name for axis in table.state}) != len(table.state):
        yield "state: a name stands twice"
    for axis in table.state:
        if not all(map(math.isfinite, axis.edges)) or any(a >= b for a, b in zip(axis.edges, axis.edges[1:])):  # noqa: B905
            yield f"state: the edges of {axis.name} are not finite and increasing"
    for name, value in table.metrics.items():
        if not math.isfinite(value):
            yield f"metrics: {name!r} is not finite"
    rows = math.prod(len(axis.edges) + 1 for axis in table.state)
    if len(table.q) != rows or len(table.policy) != rows:
        yield f"q and policy: {len(table.q)} and {len(table.policy)} rows, but there are {rows} states"
    for row, (values, best) in enumerate(zip(table.q, table.policy, strict=True)):
        if len(values) != actions:
            yield f"q[{row}]: {len(values)} numbers for {actions} actions"
        if not all(abs(value) <= 1e6 for value in values):
            yield f"q[{row}]: not all finite and within 1e6"
        if best >= actions or values[best] < max(values):
            yield f"policy[{row}]: action {best} is not the best of its row"
