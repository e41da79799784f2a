"""What a device run is told: one dataclass, filled from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime_edge import minisign


@dataclass(frozen=True)
class DeviceConfig:
    """Settings of `ssc edge run`; see its `--help` for what each is for."""

    device: str
    source: str
    state: Path
    target: str
    broker: str | None = None
    bundle: Path | None = None
    trusted: minisign.PublicKey | None = None
    variant: str = "onnx-fp32"
    encoding: str = "int8"
    threads: int = 1
    deadline_s: float = 1.0
    ack_timeout_s: float = 10.0
    in_flight: int = 4
    spool_bytes: int = 256 << 20
    min_cut: str | None = None
    """Privacy floor: never ship anything earlier than this cut."""
    realtime: bool = True
    loop: bool = False
    speed: float = 1.0
    gate_db: float | None = None
    stdin_rate: int | None = None
    stdin_channels: int = 1
    max_windows: int | None = None
    drain_s: float = 30.0
    """How long to go on sending spooled frames after the source has ended."""
    seed: int = 0
