"""A table with six states and four actions, and the same as an earlier version's file."""

from __future__ import annotations

from typing import Any

from runtime_edge.formats.records.actions import ActionCosts, Uplink, costs_digest
from runtime_edge.formats.records.table import LOCAL, Limits, Reward, SplitterTable, StateAxis, cuts_digest

CUTS = ["waveform", "layer1", "embedding"]


UPLINK = Uplink(mj_per_kb=2.27, transmit_w=0.133)


def actions_of(names: Any, sizes: Any) -> tuple[ActionCosts, ...]:
    return tuple(
        ActionCosts(
            name=name,
            cut=name,
            encoding=None if name == LOCAL else "float16",
            answer="device" if name in (LOCAL, "embedding") else "server",
            device_ms=10.0 * index,
            device_mj=40.0 * index,
            bytes=size,
            server_ms=3.0,
            quality=(0.99, 0.98),
            teaches=name not in (LOCAL, "embedding"),
        )
        for index, (name, size) in enumerate(zip(names, sizes, strict=True))
    )


COSTS = actions_of((*CUTS, LOCAL), (32000, 8000, 256, 0))


def make(**changes: Any) -> SplitterTable:
    changes.setdefault("costs_digest", costs_digest(changes.get("costs", COSTS), UPLINK))
    fields: dict[str, Any] = {
        "target": "rpi4",
        "encoder": "resnet18",
        "created_by": "test",
        "costs": COSTS,
        "uplink": UPLINK,
        "limits": Limits(),
        "discount": 0.5,
        "hop_s": 0.5,
        "dead_band": 0.1,
        "dwell": 6,
        "bundle": "sha256:" + "1" * 64,
        "state": (
            StateAxis(name="uncertainty", edges=(0.5,)),
            StateAxis(name="bandwidth_mbps", edges=(1.0, 4.0)),
        ),
        "reward": Reward(),
        "hysteresis": 0.1,
        "probe_rate": 0.05,
        "bundle_cuts": cuts_digest(CUTS),
        "metrics": {"regret": 0.01},
        "q": (
            *((1.0, 2.0, 3.0, 4.0), (1.0, 9.0, 3.0, 4.0), (5.5, 2.0, 3.0, 4.0)),
            *((1.0, 2.0, 8.0, 4.0), (1.0, 7.0, 3.0, 4.0), (6.0, 2.0, 3.0, 4.0)),
        ),
    }
    return SplitterTable(**(fields | changes))
