"""The splitter table: which action to take in which state (docs/tables.md).

A table (`streamsplit.table/2`, JSON, at most 64 KiB) has one row for each combination of state bins, and in each row
one Q value for each action: a cut of the bundle in an encoding, or `local` (run everything, ship nothing). It also
holds what it was trained on: each action's costs, the uplink, the reward and the limits.

    table = SplitterTable.from_json(data, "tables/rpi4.json")
    table.check_cuts([cut.name for cut in manifest.info.cuts])

`SplitterTable.from_json(table.to_json(), ...) == table` if `q` is as `as_stored` gives it; tables of version 1 are
upgraded when they are read. runtime_edge.policy.splitter uses tables.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from runtime_edge.errors import TableError
from runtime_edge.formats.records import table_values
from runtime_edge.formats.records.actions import (
    STREAMS,
    ActionCosts,
    Costs,
    ShipThresholds,
    Uplink,
    canonical_json,
    costs_digest,
)
from runtime_edge.formats.records.table_values import MAX_Q, as_stored, q_rows
from runtime_edge.formats.strict import Name, Strict, decode

MAX_TABLE_BYTES = 64 << 10
MAX_ACTIONS = 24
LOCAL = "local"
PHI = 0.5

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
StateName = Literal["uncertainty", "cpu", "bandwidth_mbps", "rtt_ms", "temperature_c", "battery"]


class StateAxis(Strict, frozen=True):
    """A state variable in bins: bin i holds `edges[i-1] <= value < edges[i]`, so there is one bin more than edges."""

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
    """Worth of a window that the server can learn from, per unit of uncertainty."""
    phi: Annotated[float, Meta(ge=0, le=1)] | msgspec.UnsetType = msgspec.UNSET
    """How much the first answer counts, if an exit gives one: `A = phi A_first + (1 - phi) A_final`, `Lat` likewise."""

    @property
    def first_share(self) -> float:
        """`phi`, or its default if a table does not say."""
        return PHI if self.phi is msgspec.UNSET else self.phi


class Limits(Strict, frozen=True):
    """Caps that training keeps besides the reward; None is no cap. The prices are the multipliers that enforce them."""

    mb_per_hour: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """In any hour; the device enforces it itself (`Allowance`)."""
    latency_p95_ms: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    memory_mb: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    min_cut: Name | None = None
    """Privacy floor: no action before this cut."""
    price_per_kb: Weight = 0.0
    """Reward that 1000 bytes cost."""
    price_late: Weight = 0.0
    """Reward that a window slower than `latency_p95_ms` costs."""


class Allowance(NamedTuple):
    """A cap on bytes in any hour, as a token bucket. It begins full: BURST_SHARE of an hour may go at once."""

    size: float
    """Bytes it holds at most."""
    refill: float
    """Bytes that each window adds."""


BURST_SHARE = 1 / 12


def allowance(limits: Limits, hop_s: float) -> Allowance:
    """The bucket whose size and refill together allow at most the cap in an hour; infinite without a cap."""
    cap = math.inf if limits.mb_per_hour is None else limits.mb_per_hour * 1e6
    return Allowance(cap * BURST_SHARE, cap * (1 - BURST_SHARE) * hop_s / 3600)


def cut_position(action: str, cut_names: Sequence[str]) -> int:
    """Index of an action's cut; `local` counts as one past the last cut."""
    return len(cut_names) if action == LOCAL else cut_names.index(action)


class _Common(Strict, frozen=True, kw_only=True):
    """The fields that both versions share."""

    target: Name
    encoder: Name
    """Id of the encoder it was trained for."""
    created_by: Name
    uplink: Uplink
    reward: Reward
    limits: Limits
    discount: Annotated[float, Meta(ge=0, lt=1)]
    hop_s: Annotated[float, Meta(gt=0, le=3600)]
    """Seconds from one window to the next."""
    state: Annotated[tuple[StateAxis, ...], Meta(min_length=1, max_length=6)]
    hysteresis: Weight
    """By how many units of Q another cut must be better before the device changes."""
    dead_band: Annotated[float, Meta(ge=0, le=0.5)]
    """A bin is left only when the value is past its edge by this share of the edge."""
    dwell: Annotated[int, Meta(ge=0, le=3600)]
    """Minimum number of windows a cut is kept, unless link or load have moved to another bin."""
    probe_rate: Annotated[float, Meta(ge=0, le=0.2)]
    """Share of windows shipped at an earlier cut than chosen, so that early blocks learn."""
    costs_digest: Digest
    """Digest of `costs` and `uplink`: the cost table it was trained on."""
    bundle: Digest
    """Digest of the manifest it was trained for. Later generations with the same cuts accept the table too."""
    bundle_cuts: Digest
    """`cuts_digest` of the bundle's cut names."""
    metrics: Annotated[dict[Name, float], Meta(max_length=64)]
    """Measured on held-out traces."""


class _Version1(_Common, frozen=True, kw_only=True):
    """The file until 0.1.0."""

    format: Literal["streamsplit.table/1"] = "streamsplit.table/1"
    costs: Annotated[tuple[Costs, ...], Meta(min_length=1, max_length=256)]
    policy: tuple[Annotated[int, Meta(ge=0)], ...]
    q: tuple[tuple[float, ...], ...]


class _Version2(_Common, frozen=True, kw_only=True):
    """The file as it is written."""

    format: Literal["streamsplit.table/2"] = "streamsplit.table/2"
    costs: Annotated[tuple[ActionCosts, ...], Meta(min_length=1, max_length=256)]
    ship: ShipThresholds | None = None
    upgraded_from: Digest | None = None
    values: bytes
    """float32 (states,): Q of each row's best action."""
    q: bytes
    """float16 (states, actions): Q minus that of the row's best action, at most 0."""


class _AnyVersion(msgspec.Struct):
    format: str = "streamsplit.table/1"


class SplitterTable(_Common, frozen=True, kw_only=True, dict=True):
    """A whole table. Building an inconsistent one raises TableError naming the field."""

    costs: tuple[ActionCosts, ...]
    """The actions: cuts in cut order, then `local` if there is one."""
    ship: ShipThresholds | None = None
    """None: everything that an action ships is shipped."""
    upgraded_from: Digest | None = None
    """Its digest before it was upgraded from version 1; corrections that devices learnt on that table still hold."""
    q: tuple[tuple[float, ...], ...]
    """Q[row][action], in discounted reward; the last state variable changes fastest."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise TableError(problem)

    @cached_property
    def policy(self) -> tuple[int, ...]:
        """Best action of each row; the first if several are equal."""
        return tuple(values.index(max(values)) for values in self.q)

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions."""
        return tuple(action.name for action in self.costs)

    @property
    def cuts(self) -> tuple[str, ...]:
        """Each action's cut, or `local`."""
        return tuple(action.cut for action in self.costs)

    @property
    def action_bytes(self) -> tuple[int, ...]:
        """Bytes of each action's frame."""
        return tuple(action.bytes for action in self.costs)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical bytes."""
        return "sha256:" + hashlib.sha256(self._canonical()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes, source: str) -> SplitterTable:
        """Read and check a table of either version. Raises TableError, one line that names `source` and the field."""
        version = decode(data, _AnyVersion, source, MAX_TABLE_BYTES, TableError).format
        kind: type[_Version1 | _Version2] = _Version1 if version == "streamsplit.table/1" else _Version2
        file = decode(data, kind, source, MAX_TABLE_BYTES, TableError)
        try:
            return _upgraded(file, data) if isinstance(file, _Version1) else _opened(file)
        except TableError as exc:
            raise TableError(f"{source}: {exc}") from None

    def to_json(self) -> bytes:
        """Canonical bytes, one action per line. Raises TableError if they, or the actions, are too many."""
        _check_few(self.costs)
        data = self._canonical()
        if len(data) > MAX_TABLE_BYTES:
            raise TableError(
                f"q: {len(self.q)} rows of {len(self.actions)} actions make {len(data)} bytes, a table has "
                f"at most {MAX_TABLE_BYTES}; use fewer bins or fewer cuts"
            )
        return data

    def _canonical(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        values, below = table_values.packed(self.q)
        file = _Version2(**(fields | {"values": values, "q": below}))
        named = msgspec.to_builtins(file)
        named = msgspec.to_builtins(msgspec.convert(named, _Version2))  # 1 becomes 1.0
        lines = []
        for name in sorted(named, key="format".__ne__):
            if name == "costs":
                rows = ",\n  ".join(canonical_json(row) for row in named[name])
                lines.append(f'"{name}":[\n  {rows}]')
            else:
                lines.append(f'"{name}":{canonical_json(named[name])}')
        return ("{" + ",\n ".join(lines) + "}\n").encode()

    def lookup(self, state: Mapping[str, float]) -> int:
        """The row of a state; NaN falls into the last bin. Raises TableError if a variable is missing."""
        row = 0
        for axis in self.state:
            value = state.get(axis.name)
            if value is None:
                raise TableError(f"the table needs the state variable {axis.name}, which is not measured here")
            row = row * (len(axis.edges) + 1) + bisect_right(axis.edges, value)
        return row

    def check_cuts(self, cut_names: Sequence[str]) -> None:
        """Raise TableError unless the table was made for a bundle with exactly these cuts, in this order."""
        for cut in self.cuts:
            if cut != LOCAL and cut not in cut_names:
                raise TableError(f"costs: the bundle has no cut {cut!r}, only {', '.join(cut_names)}")
        if self.bundle_cuts != cuts_digest(cut_names):
            raise TableError("bundle_cuts: the table was trained for a bundle with other cuts; train it again")
        positions = [cut_position(cut, cut_names) for cut in self.cuts]
        if positions != sorted(positions):
            raise TableError("costs: not in the order of the bundle's cuts")
        for action, position in zip(self.costs, positions, strict=True):
            if action.encoding in STREAMS and position > 0:
                raise TableError(f"costs: {action.name}: {action.encoding} is an encoding only for {cut_names[0]}")


def cuts_digest(cut_names: Iterable[str]) -> str:
    """`sha256:<hex>` over the names of a bundle's cuts, in order."""
    return "sha256:" + hashlib.sha256(canonical_json(list(cut_names)).encode()).hexdigest()


def _opened(file: _Version2) -> SplitterTable:
    _check_few(file.costs)
    fields = {name: getattr(file, name) for name in SplitterTable.__struct_fields__}
    for problem in _state_problems(file):
        raise TableError(problem)
    q = table_values.unpacked(file.values, file.q, _rows(file), len(file.costs))
    return SplitterTable(**(fields | {"q": q_rows(q)}))


def _upgraded(file: _Version1, data: bytes) -> SplitterTable:
    """A table of version 1, upgraded: its cuts get the encodings of the device's settings, and Q is rounded."""
    if file.costs_digest != costs_digest(file.costs, file.uplink):
        raise TableError("costs_digest: not that of costs and uplink")
    _check_rows(file)
    costs = tuple(
        ActionCosts(
            **msgspec.structs.asdict(action),
            cut=action.name,
            encoding=None,
            answer="server" if action.teaches else "device",
        )
        for action in file.costs
    )
    common = {name: getattr(file, name) for name in _Common.__struct_fields__}
    changed = {
        "costs": costs,
        "costs_digest": costs_digest(costs, file.uplink),
        "q": q_rows(as_stored(file.q)),
        "upgraded_from": "sha256:" + hashlib.sha256(data.strip() + b"\n").hexdigest(),
    }
    return SplitterTable(**(common | changed))


def _check_few(costs: Sequence[ActionCosts]) -> None:
    if len(costs) > MAX_ACTIONS:
        raise TableError(f"costs: {len(costs)} actions, a table has at most {MAX_ACTIONS}; train it with fewer cuts")


def _rows(table: _Common) -> int:
    """The number of states."""
    return math.prod(len(axis.edges) + 1 for axis in table.state)


def _check_rows(table: _Version1) -> None:
    """Raise TableError unless `q` and `policy` have one row for each state, and `policy` the best action of it."""
    rows = _rows(table)
    if len(table.q) != rows or len(table.policy) != rows:
        raise TableError(f"q and policy: {len(table.q)} and {len(table.policy)} rows, but there are {rows} states")
    for row, (values, best) in enumerate(zip(table.q, table.policy, strict=True)):
        if len(values) != len(table.costs):
            raise TableError(f"q[{row}]: {len(values)} numbers for {len(table.costs)} actions")
        if best >= len(values) or values[best] < max(values):
            raise TableError(f"policy[{row}]: action {best} is not the best of its row")


def _problems(table: SplitterTable) -> Iterator[str]:
    """What msgspec's types cannot express, in the order of the fields."""
    yield from _action_problems(table)
    if table.ship is not None and table.ship.min_entropy >= table.ship.max_entropy:
        yield f"ship: min_entropy {table.ship.min_entropy} is not less than max_entropy {table.ship.max_entropy}"
    yield from _state_problems(table)
    for name, value in table.metrics.items():
        if not math.isfinite(value):
            yield f"metrics: {name!r} is not finite"
    if len(table.q) != _rows(table):
        yield f"q: {len(table.q)} rows, but there are {_rows(table)} states"
    for row, values in enumerate(table.q):
        if len(values) != len(table.costs):
            yield f"q[{row}]: {len(values)} numbers for {len(table.costs)} actions"
        if not all(abs(value) <= 2 * MAX_Q for value in values):  # a difference may have been rounded beyond MAX_Q
            yield f"q[{row}]: not all finite and within {MAX_Q:g}"


def _state_problems(table: _Common) -> Iterator[str]:
    if len({axis.name for axis in table.state}) != len(table.state):
        yield "state: a name appears twice"
    for axis in table.state:
        if not all(map(math.isfinite, axis.edges)) or any(a >= b for a, b in zip(axis.edges, axis.edges[1:])):  # noqa: B905
            yield f"state: the edges of {axis.name} are not finite and increasing"


def _action_problems(table: SplitterTable) -> Iterator[str]:
    if not table.costs:
        yield "costs: no action"
    if len(set(table.actions)) != len(table.costs):
        yield "costs: a name appears twice"
    if len({(action.cut, action.encoding, action.width, action.answer) for action in table.costs}) != len(table.costs):
        yield "costs: an action appears twice, under two names"
    for action in table.costs:
        if (action.name == LOCAL) != (action.cut == LOCAL):
            yield f"costs: {action.name}: the action local, and no other, has the cut local"
        if (action.answer == "exit") != (action.exit_quality is not msgspec.UNSET):
            yield f"costs: {action.name}: exit_quality is given where the exit answers, and nowhere else"
        if action.answer == "exit" and not action.teaches:
            yield f"costs: {action.name}: an exit stands at a cut before the last, so the server can learn from it"
        if action.cut != LOCAL:
            continue
        if action.bytes or action.teaches:
            yield "costs: local ships nothing, so its bytes are 0 and it teaches nothing"
        if (action.encoding, action.width, action.answer) != (None, 0, "device"):
            yield "costs: local ships nothing, so it has no encoding and no width, and the device answers"
    if table.costs_digest != costs_digest(table.costs, table.uplink):
        yield "costs_digest: not that of costs and uplink"
