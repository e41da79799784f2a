"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from runtime_server.adaptation.adaptation_loop import AdaptConfig
from runtime_server.broker.access import SecurityConfig
from runtime_server.ingest.frame_replay import ReplayConfig
from runtime_server.ingest.rate import FRAMES_PER_S
from runtime_server.releases.release_gate import ReleaseConfig
from runtime_server.releases.rollout import RolloutConfig
from runtime_server.suffix.suffix import Precision
from runtime_server.telemetry.energy import AUTO
from runtime_server.training.trainer import TrainConfig


@dataclass(frozen=True)
class ServerConfig:
    """Settings of `ssc server run`; see its `--help`."""

    bundle: Path
    state: Path
    broker: str | None = None
    """Address of an outside broker; without one the server starts its own."""
    replicas: int = 1
    """How many brokers of a cluster keep each message."""
    host: str = "127.0.0.1"
    port: int = 4222
    mqtt_port: int | None = None
    """Port on which the embedded broker admits MQTT clients."""
    key: Path | None = None
    calibrate: Path | None = None
    larger: Path | None = None
    """An encoder that completes windows that arrive as audio (docs/cascade.md)."""
    larger_head: Path | None = None
    """Head for that encoder's own embeddings (docs/adaptation.md)."""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    training: bool = True
    threads: int = 1
    precision: Precision = "float32"
    """Number format in which frames are completed; training always uses float32."""
    train: TrainConfig = field(default_factory=TrainConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    max_rate: float = FRAMES_PER_S
    """Frames a second that one device may send on average."""
    health_port: int | None = None
    """Port of this machine for `/healthz` and `/metrics`."""
    web: str | None = None
    """Address of the page: a port of this machine, or host:port."""
    energy: str = AUTO
    """How the energy of training is measured (`energy_source`)."""
    idle_watts: float | None = None
    """Power of this machine at rest, W, for energy above idle."""
    tensorboard: Path | None = None
    """Directory for TensorBoard's event files."""
    checkpoint_steps: int = 200
    """Training steps between two checkpoints."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    release: ReleaseConfig = field(default_factory=ReleaseConfig)
    probe: Path | None = None
    """Labelled recordings, a folder or CSV, on which no release may get worse."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
