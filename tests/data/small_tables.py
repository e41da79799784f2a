"""Small tables for tests of what uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.records.actions import ActionCosts, Uplink, costs_digest
from runtime_edge.formats.records.table import (
    LOCAL,
    Limits,
    Reward,
    SplitterTable,
    StateAxis,
    StateName,
    cuts_digest,
)

CUTS = ("waveform", "layer1", "layer2", "embedding")
BYTES = (32000, 16000, 8000, 256, 0)
UPLINK = Uplink(mj_per_kb=2.0, transmit_w=0.1)


def action(name: str, size: int, device_ms: float = 0.0) -> ActionCosts:
    return ActionCosts(
        name=name,
        cut=name,
        encoding=None,
        answer="device" if name in ("embedding", LOCAL) else "server",
        device_ms=device_ms,
        device_mj=4.0 * device_ms,
        bytes=size,
        server_ms=0.0 if name == LOCAL else 3.0,
        quality=(0.99,),
        teaches=name not in ("embedding", LOCAL),
    )


def make_table(
    q: Sequence[tuple[float, ...]],
    axis: StateName = "bandwidth_mbps",
    edges: tuple[float, ...] = (1.0,),
    names: Sequence[str] = (*CUTS, LOCAL),
    sizes: Sequence[int] = BYTES,
    **changes: Any,
) -> SplitterTable:
    """A table over one state variable; no dead band, no dwell, no probes unless asked for."""
    costs = tuple(action(name, size, 20.0 * i) for i, (name, size) in enumerate(zip(names, sizes, strict=True)))
    fields: dict[str, Any] = {
        "target": "rpi4",
        "encoder": "resnet18",
        "created_by": "test",
        "costs": costs,
        "uplink": UPLINK,
        "reward": Reward(),
        "limits": Limits(),
        "discount": 0.0,
        "hop_s": 0.5,
        "state": (StateAxis(name=axis, edges=edges),),
        "hysteresis": 0.5,
        "dead_band": 0.0,
        "dwell": 0,
        "probe_rate": 0.0,
        "costs_digest": costs_digest(costs, UPLINK),
        "bundle": "sha256:" + "1" * 64,
        "bundle_cuts": cuts_digest(CUTS),
        "metrics": {},
        "q": tuple(q),
    }
    return SplitterTable(**(fields | changes))


def always(bundle: Bundle, target: str, cut: str, **changes: Any) -> SplitterTable:
    """A bundle's table, changed to take one cut in every state."""
    table = bundle.table(target)
    best = table.actions.index(cut)
    row = tuple(float(action == best) for action in range(len(table.actions)))
    return replace(
        table,
        state=(StateAxis(name="bandwidth_mbps", edges=()),),
        hysteresis=0.0,
        **{"q": (row,), "probe_rate": 0.0, "created_by": f"test {cut}", **changes},
    )


def up_to(bundle: Bundle, target: str, cut: str) -> SplitterTable:
    """A table that knows the cuts up to one, and takes that one in every state."""
    table = bundle.table(target)
    costs = table.costs[: table.actions.index(cut) + 1]
    digest = costs_digest(costs, table.uplink)
    changes = {"costs": costs, "q": ((0.0,) * (len(costs) - 1) + (1.0,),), "costs_digest": digest}
    return always(bundle, target, cut, **changes)
