"""The settings of `runtime_edge.run` for editors and type checkers; `config.DeviceConfig` says what each is for."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypedDict


class RunSettings(TypedDict, total=False):
    """The settings of `DeviceConfig`, all optional; a test keeps the two in step."""

    device: str
    state: str | PathLike[str]
    target: str
    broker: str | None
    credentials: str | PathLike[str] | None
    tls_ca: str | PathLike[str] | None
    tls_cert: str | PathLike[str] | None
    tls_key: str | PathLike[str] | None
    bundle: str | PathLike[str] | None
    pub: str | PathLike[str] | None
    variant: str
    encoding: Literal["int8", "float16", "float32"]
    audio_format: Literal["pcm16", "pcm16-stream", "flac", "opus"]
    opus_kbps: float
    threads: int | None
    max_memory_mb: float | None
    deadline_ms: int
    cascade: float
    revise_above: float
    ack_timeout_s: float
    in_flight: int
    spool_mb: float
    mb_per_day: float | None
    update_mb_per_day: float | None
    trial_s: float
    power_safe: bool
    min_cut: str | None
    max_word_recognition: float | None
    learn: bool
    realtime: bool
    loop: bool
    watch: str | PathLike[str] | None
    speed: float
    gate_db: float | None
    stdin_rate: int | None
    stdin_channels: int
    channel: str
    max_windows: int | None
    drain_s: float
    results: Sequence[str]
    head: str | PathLike[str] | None
    events: Literal["all", "labels", "off"]
    event_threshold: float | None
    event_hold_s: float
    event_min_s: float
    event_rules: Sequence[str]
    keep_clips: str | PathLike[str] | None
    keep_clips_mb: float
    lend_clips: bool
    report: str | PathLike[str] | None
    metrics_port: int | None
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["text", "json"]
    seed: int
