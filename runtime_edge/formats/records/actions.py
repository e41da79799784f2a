"""The actions of a splitter table: what each does and costs, and when a window is kept (docs/tables.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from runtime_edge.formats.results import Answer
from runtime_edge.formats.strict import Name, Strict

Cost = Annotated[float, Meta(ge=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Quality = Annotated[tuple[Annotated[float, Meta(ge=-1, le=1)], ...], Meta(min_length=1, max_length=16)]
Encoding = Literal["float32", "float16", "int8", "pcm16", "pcm16-stream", "flac", "opus"]
STREAMS: tuple[Encoding, ...] = ("pcm16", "pcm16-stream", "flac", "opus")
"""Encodings of the waveform."""


class Costs(Strict, frozen=True):
    """What one window costs on an idle device: the fields that an action has in version 1."""

    name: Name
    """Name of the action, unique in the table."""
    device_ms: Cost
    device_mj: Cost
    bytes: Annotated[int, Meta(ge=0, le=1 << 31)]
    """Bytes of payload and header."""
    server_ms: Cost
    quality: Quality
    """A(k, u): agreement with the float32 encoder, in equally wide bins of uncertainty over [0, 1]."""
    teaches: bool
    """Whether the server can train on what is shipped: true for a cut before the last."""
    memory_mb: Cost = 0.0
    """Working memory of the prefix."""


class ActionCosts(Costs, frozen=True, kw_only=True):
    """One action: a cut in an encoding, or `local`."""

    cut: Name
    """The bundle's cut, or `local`."""
    encoding: Encoding | None
    """The encoding that the costs are for. None for `local`, and if a table of version 1 does not say."""
    width: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Channels of a bottleneck that are kept; 0 for the plain activation."""
    answer: Answer
    """Who answers first: the server, the device's whole encoder, or the exit at the cut."""
    exit_quality: Quality | msgspec.UnsetType = msgspec.UNSET
    """Quality of the exit's answer, if that comes first; `quality` is then that of the server's later answer."""


def action_name(cut: str, width: int, answer: Answer = "server") -> str:
    """The name of an action with a bottleneck of this width, or with the plain activation for width 0."""
    return (f"{cut}/{width}" if width else cut) + "+exit" * (answer == "exit")


class ShipThresholds(Strict, frozen=True):
    """Which windows are shipped and which are kept (docs/method.md, section 9).

    A window is shipped if the entropy of its labels' scores, as a share of `ln C`, is between the two thresholds.
    """

    min_entropy: Share = 0.02
    max_entropy: Share = 0.4
    max_entropy_scale: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    """`lambda`: how `max_entropy` follows the running mean entropy after the warm-up."""
    warm_up: Annotated[int, Meta(ge=0, le=1_000_000)] = 50
    """Number of windows in the warm-up."""
    exploration: Annotated[float, Meta(ge=0, le=0.2)] = 0.02
    """Share of the kept windows that are shipped anyway, so that the server sees them."""


class LinkRadio(Strict, frozen=True):
    """The radio that a table assumes, and what it costs to ship anything at all."""

    link: Name
    """`wifi`, `lte`, `lora`, or the name in a user's own radio file."""
    message_mj: Cost
    """Cost of each shipped window, mJ: radio woken and kept awake, the frame's overhead, the answer received."""


class Uplink(Strict, frozen=True):
    """What shipping costs a device, whatever it ships."""

    mj_per_kb: Cost
    transmit_w: Cost
    deadline_ms: Annotated[float, Meta(gt=0, le=1e6)] = 1000.0
    """After this long without an answer a device runs the rest itself."""
    radio: LinkRadio | msgspec.UnsetType = msgspec.UNSET
    """For tables that know their link; others charge for bytes and time alone, and their files omit it."""

    @property
    def message_mj(self) -> float:
        """Cost of a shipped window, however small, mJ."""
        return 0.0 if self.radio is msgspec.UNSET else self.radio.message_mj


def costs_digest(costs: Iterable[Costs], uplink: Uplink) -> str:
    """`sha256:<hex>` over the actions, all of one kind, and their costs; at least one action."""
    actions = list(costs)
    fields = msgspec.to_builtins((actions, uplink))
    canonical = msgspec.convert(fields, tuple[list[type(actions[0])], Uplink])  # type: ignore[misc]  # 1 becomes 1.0
    return "sha256:" + hashlib.sha256(canonical_json(msgspec.to_builtins(canonical)).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """JSON that is the same for the same value: sorted keys, no spaces. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
