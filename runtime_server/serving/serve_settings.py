"""The settings of `runtime_server.serve` for editors and type checkers; `ServerSettings` describes each of them."""

from __future__ import annotations

from os import PathLike
from typing import Literal, TypedDict


class ServeSettings(TypedDict, total=False):
    """The settings in `ServerSettings`, all optional; a test compares the two."""

    state: str | PathLike[str]
    broker: str | None
    replicas: int
    host: str
    port: int
    mqtt_port: int | None
    calibrate: str | PathLike[str] | None
    larger: str | PathLike[str] | None
    larger_head: str | PathLike[str] | None
    adapt: Literal["joint", "cema", "tent", "eata", "sar"] | None
    adapt_scope: Literal["device", "alike", "target"]
    adapt_least_s: float
    adapt_devices: int
    adapt_statistics: Literal["frozen", "blended"]
    training: bool | None
    batch: int
    objective: Literal["neighbours", "virtual-negatives", "simclr", "moco", "simsiam", "barlow-twins"]
    loss: Literal["task", "hybrid"]
    spread: Literal["sw", "mse", "kl", "mmd", "none"] | None
    learning_rate: float
    train_share: float
    checkpoint_steps: int
    replay_mb: int
    meter: str
    idle_watts: float | None
    release_steps: int
    release_s: float | None
    release_least_s: float
    release_tolerance: float
    bottleneck_steps: int
    probe: str | PathLike[str] | None
    canary_share: float
    canary_from: int
    healthy_s: float
    update_mb_per_day: float | None
    tensorboard: str | PathLike[str] | None
    web: str | None
    threads: int
    precision: Literal["float32", "bfloat16"]
    seed: int
    auth: bool | None
    credentials: str | PathLike[str] | None
    tls_cert: str | PathLike[str] | None
    tls_key: str | PathLike[str] | None
    tls_ca: str | PathLike[str] | None
    max_rate: float
    metrics_port: int | None
    key: str | PathLike[str] | None
