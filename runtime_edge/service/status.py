"""How a device is doing, for people and programs on the same machine.

<state>/status.json       the device's last status, rewritten every few seconds and at its end
<state>/running.lock      held by the device as long as its process lives

The file is not synced to the disk: it is of no use after a power cut, and a memory card wears out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from runtime_edge.audio import Counters
from runtime_edge.base.files import is_locked, write_atomic
from runtime_edge.base.histogram import Histogram
from runtime_edge.base.logs import Trouble
from runtime_edge.formats import strict
from runtime_edge.system import Health
from runtime_edge.transport.accounting import Stage
from runtime_edge.transport.budgets import TrafficStatus
from runtime_edge.transport.spool.spool import SpoolState

STALE_S = 30.0
"""A running device that reports nothing for this long counts as stuck, s."""
REFUSED_FOR_LONG = 20
"""How many frames a server may refuse after it has completed some: those of a generation that it has just retired."""
_MAX_BYTES = 1 << 20


class EncoderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The encoder that runs."""

    generation: int
    bundle: str
    """Digest of its manifest."""
    variant: str
    runtime: str
    blocks: tuple[int, int] = (0, 0)
    """How many of its first blocks are here, and how many there are."""
    front_end: str = "graph"
    """What computes the log-mel image: `fft`, or `graph` along with the rest of the encoder."""
    table: str
    """Who made the splitter table."""
    on_trial: bool


class UplinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The connection to the server; rates as the splitter sees them."""

    broker: str | None
    connected: bool
    bandwidth_mbps: float
    rtt_ms: float
    loss: float
    """Share of the last frames that were not answered in time."""


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A device at one moment. Times are seconds since the epoch."""

    device: str
    target: str
    pid: int
    since: float
    written: float
    written_monotonic: float
    """Time by a clock that never jumps; comparable between processes until the machine restarts."""
    ended: str | None
    """The reason for its end, if it has ended and could give one."""
    encoder: EncoderStatus
    cut: str | None
    """The cut of the latest window."""
    uncertainty: float | None
    cpu: float
    uplink: UplinkStatus
    traffic: TrafficStatus = TrafficStatus()
    spool: SpoolState
    audio: Counters
    source_silent_s: float
    """Seconds since the source last delivered audio."""
    results_dropped: int = 0
    """Results that the readers of files and standard output did not take."""
    namesake: str = ""
    """A message about another device with this name; empty if there is none."""
    health: Health
    metrics_port: int | None
    report: dict[str, Any]
    """The run's accounting."""
    stage_ms: dict[Stage, Histogram]
    cut_ms: dict[str, Histogram]
    troubles: list[Trouble]
    """The last warnings, newest first."""


def status_file(state: Path) -> Path:
    """The file in which a device with this state directory keeps its status."""
    return state / "status.json"


def lock_file(state: Path) -> Path:
    """The file that a device with this state directory keeps locked while it lives."""
    return state / "running.lock"


def write_status(state: Path, status: DeviceStatus) -> None:
    """Replace the previous status. Raises OSError."""
    write_atomic(status_file(state), msgspec.json.encode(status), durable=False)


def read_status(state: Path) -> DeviceStatus | None:
    """The device's last status; None if it has never run from here. Raises FormatError."""
    path = status_file(state)
    if not path.exists():
        return None
    return strict.read(path, DeviceStatus, _MAX_BYTES, fix="; start the device again")


def acknowledged(report: dict[str, Any]) -> int:
    """How many windows the broker has stored, without those that the server has refused since."""
    return max(0, int(report["windows_acked"]) - int(report.get("windows_refused", 0)))


def completes_none(state: Path, report: dict[str, Any]) -> str:
    """What to do about a server that refuses all that a device sends; empty if it completes some, or received none."""
    refused = report.get("refused_in_a_row", 0)
    if not refused or (report.get("finished", {}).get("server") and refused < REFUSED_FOR_LONG):
        return ""
    return (
        f"the server completes none of this device's frames and has refused {refused}: they are made with a bundle "
        "that is not this server's, or no longer; leave out --bundle, or, where another server's key is pinned, "
        f"remove {state}/trusted.pub and trusted.pub.sha256, and start again"
    )


def problems(state: Path, status: DeviceStatus) -> list[str]:
    """What is wrong with a device, in words; empty if it runs and all is well."""
    if not is_locked(lock_file(state)):
        return [f"not running: {status.ended or 'it ended without a word (killed, or the power failed)'}"]
    found = []
    silent_s = time.monotonic() - status.written_monotonic
    if silent_s > STALE_S:
        found.append(f"no sign of life for {silent_s:.0f} s: its computing or its disk is stuck")
    if status.source_silent_s > STALE_S:
        found.append(f"no audio for {status.source_silent_s:.0f} s: look at the source")
    if words := completes_none(state, status.report):
        found.append(words)
    if status.namesake:
        found.append(status.namesake)
    if brought := status.audio.measured_rate_hz:
        found.append(f"the source brings {brought:,} samples a second, which is not the rate it states")
    if lost := status.report.get("windows_lost"):
        found.append(f"{lost} windows are lost without a reason: a fault of the device, please report it")
    return found
