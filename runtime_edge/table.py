"""The splitter table, a file a person can read: which cut to take in which state (docs/tables.md).

A table (`streamsplit.table/1`, JSON, at most 64 KiB) has one row for each combination of state bins and in it
one Q value for each action: a cut of the bundle by name, or `local` (run everything, ship nothing).

    table = SplitterTable.from_json(data, "tables/rpi4.json")
    table.check_cuts([cut.name for cut in manifest.info.cuts])

`SplitterTable.from_json(table.to_json(), ...) == table`; runtime_edge.splitter uses it.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from runtime_edge.errors import TableError

MAX_TABLE_BYTES = 64 << 10
LOCAL = "local"

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
StateName = Literal["uncertainty", "cpu", "bandwidth_mbps", "rtt_ms", "temperature_c", "battery"]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class StateAxis(_Strict, frozen=True):
    """A state variable in bins: bin i holds `edges[i-1] <= value < edges[i]`, one bin more than edges."""

    name: StateName
    edges: Annotated[tuple[float, ...], Meta(max_length=63)]


class Reward(_Strict, frozen=True):
    """METHOD section 6: `alpha * (A + rho * u) - beta * Lat / t_max_ms - eta * E / e_budget_mj`."""

    alpha: Weight = 10.0
    beta: Weight = 5.0
    eta: Weight = 3.0
    t_max_ms: Annotated[float, Meta(gt=0, le=1e6)] = 200.0
    e_budget_mj: Annotated[float, Meta(gt=0, le=1e6)] = 100.0
    rho: Weight = 0.2
    """Worth of a window the server can learn from, for each unit of uncertainty."""


def cut_position(action: str, cut_names: Sequence[str]) -> int:
    """Index of an action's cut; `local` counts as one past the last cut."""
    return len(cut_names) if action == LOCAL else cut_names.index(action)


class SplitterTable(_Strict, frozen=True, kw_only=True):
    """A whole table file. Building one that does not hold together raises TableError naming the field."""

    format: Literal["streamsplit.table/1"] = "streamsplit.table/1"
    target: Name
    encoder: Name
    """Id of the encoder it was trained for."""
    created_by: Name
    actions: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=256)]
    """Cut names in cut order, then perhaps `local`."""
    action_bytes: tuple[Annotated[int, Meta(ge=0, le=1 << 31)], ...]
    """Payload bytes of each action."""
    state: Annotated[tuple[StateAxis, ...], Meta(min_length=1, max_length=6)]
    reward: Reward
    hysteresis: Weight
    """Reward units another cut must be better by before the device changes."""
    probe_rate: Annotated[float, Meta(ge=0, le=0.2)]
    """Share of windows shipped at an earlier cut than chosen, so that early blocks learn."""
    costs_digest: Digest
    """Of the costs it was trained on."""
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

    @classmethod
    def from_json(cls, data: bytes, source: str) -> SplitterTable:
        """Read and check a table. Raises TableError, one line that names `source` and the field."""
        if len(data) > MAX_TABLE_BYTES:
            raise TableError(f"{source}: {len(data)} bytes, a table has at most {MAX_TABLE_BYTES}")
        try:
            return msgspec.json.decode(data, type=cls)
        except TableError as exc:
            raise TableError(f"{source}: {exc}") from None
        except msgspec.ValidationError as exc:
            raise TableError(f"{source}: {' '.join(str(exc).split())}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise TableError(f"{source}: not JSON ({' '.join(str(exc).split())})") from None

    def to_json(self) -> bytes:
        """Canonical bytes, one row of Q a line. Raises TableError when they are more than a table has."""
        canonical = msgspec.convert(msgspec.to_builtins(self), SplitterTable)  # 1 becomes 1.0
        fields = msgspec.to_builtins(canonical)
        lines = []
        for name in self.__struct_fields__:
            if name == "q":
                rows = ",\n  ".join(_compact(row) for row in fields["q"])
                lines.append(f'"q":[\n  {rows}]')
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
                raise TableError(f"actions: the bundle has no cut {action!r}, only {', '.join(cut_names)}")
        if self.bundle_cuts != cuts_digest(cut_names):
            raise TableError("bundle_cuts: the table was trained for a bundle with other cuts; train it again")
        positions = [cut_position(action, cut_names) for action in self.actions]
        if positions != sorted(positions):
            raise TableError("actions: not in the order of the bundle's cuts")


def cuts_digest(cut_names: Iterable[str]) -> str:
    """`sha256:<hex>` over the names of a bundle's cuts, in order."""
    return "sha256:" + hashlib.sha256(_compact(list(cut_names)).encode()).hexdigest()


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _check(table: SplitterTable) -> None:
    for problem in _problems(table):
        raise TableError(problem)


def _problems(table: SplitterTable) -> Iterator[str]:
    """What msgspec's types cannot say, in the order of the fields."""
    actions = len(table.actions)
    if len(set(table.actions)) != actions:
        yield "actions: a name stands twice"
    if len(table.action_bytes) != actions:
        yield f"action_bytes: {len(table.action_bytes)} numbers for {actions} actions"
    if any(size for action, size in zip(table.actions, table.action_bytes, strict=True) if action == LOCAL):
        yield "action_bytes: local ships nothing, so its bytes are 0"
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
