"""The settings of a device: one dataclass, filled from a TOML file, the environment and the command line.

To add a setting, add a field here: the option of `ssc edge run`, the key of the file, its validation and its
documentation follow from it.
"""

# ruff: noqa: RUF009 - `setting` makes a dataclass field
from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.credentials import servers
from runtime_edge.settings import setting


def host_name() -> str:
    """The name of this machine, made into a valid device name."""
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:63] or "device"


@dataclass(frozen=True)
class LabelRule:
    """When a label switches on and off."""

    hold_s: float = 2.0
    """It switches off after not being detected for this long, s."""
    min_s: float = 0.0
    """It switches on after being detected in every window for this long, s."""
    threshold: float | None = None
    """Score from which it counts as detected; None: the head's own threshold."""


_RULE = {"hold_s": (0.0, 86_400.0), "min_s": (0.0, 3600.0), "threshold": (0.0, 1.0)}
_EXAMPLE = "rain: threshold=0.9 min_s=5 hold_s=30"


def label_rules(texts: Iterable[str], usual: LabelRule = LabelRule()) -> dict[str, LabelRule]:
    """The rules of labels that have their own, from lines like `rain: threshold=0.9 min_s=5 hold_s=30`.

    `usual` supplies what a line omits. Raises UsageError naming the line.
    """
    found: dict[str, LabelRule] = {}
    for text in texts:
        label, separator, settings = text.rpartition(":")
        label = label.strip()
        if not separator or not label or not settings.split():
            raise UsageError(f"event rule {text!r:.100}: write a label, a colon and settings, such as {_EXAMPLE!r}")
        if label in found:
            raise UsageError(f"event rule {text!r:.100}: {label!r:.60} has a rule already; put all into one")
        found[label] = replace(usual, **dict(_rule_value(text, word) for word in settings.split()))
    return found


def _rule_value(text: str, word: str) -> tuple[str, float]:
    name, _, value = word.partition("=")
    if name not in _RULE:
        raise UsageError(f"event rule {text!r:.100}: {word!r:.60} is none of {', '.join(_RULE)}; such as {_EXAMPLE!r}")
    least, most = _RULE[name]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise UsageError(f"event rule {text!r:.100}: {name} is {value!r:.30}; give a number from {least:g} to {most:g}")
    return name, number


@dataclass(frozen=True)
class DeviceConfig:
    """Settings of `ssc edge run`, in the order of its help and of `ssc edge config`."""

    device: str = setting(
        host_name, "This device's name on the broker; by default the host name.", example="pi-1", common=True
    )
    source: str = setting(
        "", "mic, an audio file, a directory, or - for PCM16 on standard input; this or watch is required.",
        example="mic", common=True,
    )  # fmt: skip
    state: Path = setting(Path("ssc-edge"), "State directory: spool, bundles, tables, status.", common=True)
    target: str = setting("rpi4", "Target whose releases and tables to follow.", common=True)
    broker: str | None = setting(
        None,
        "Broker address, or several of a cluster, comma-separated; without it everything runs on this device.",
        example="nats://gateway:4222",
        check=servers,
        common=True,
    )
    credentials: Path | None = setting(
        None, "This device's key for the broker, from `ssc server device add`.", example="pi-1.creds", common=True
    )
    tls_ca: Path | None = setting(
        None, "Certificate authorities for checking a tls:// broker; by default the system's.", example="ca.pem"
    )
    tls_cert: Path | None = setting(None, "This device's certificate, if the broker asks for one.", example="pi.pem")
    tls_key: Path | None = setting(None, "The key of that certificate.", example="pi.key")
    bundle: Path | None = setting(
        None, "Bundle directory to run instead of the server's release.", example="bundle", common=True
    )
    pub: Path | None = setting(
        None, "Public key to trust; by default the server's, pinned at the first contact.", example="signing.pub"
    )
    variant: str = setting(
        "auto",
        "Compiled files to run, such as tflite-int8; auto: the target's choice, or what an installed runtime can run.",
    )
    encoding: Literal["int8", "float16", "float32"] = setting("int8", "Encoding of activations in frames.")
    audio_format: Literal["pcm16", "pcm16-stream", "flac", "opus"] = setting(
        "pcm16",
        "Encoding of a shipped waveform: whole windows (pcm16), or a stream of the new part of each window.",
        earlier=("audio",),
    )
    opus_kbps: float = setting(16.0, "Bit rate of Opus, kbit/s.", ge=6, le=128)
    threads: int | None = setting(
        None, "Inference threads; by default the target's number, at most one per processor.", ge=1, le=64,
        example=2,
    )  # fmt: skip
    max_memory_mb: float | None = setting(
        None, "Unload blocks that were not needed recently while the process uses more than this, MB.", ge=32,
        le=1 << 20, example=150.0,
    )  # fmt: skip
    deadline_ms: int = setting(1000, "How long to wait for a window's answer, ms.", ge=10, le=600_000)
    cascade: float = setting(
        0.0,
        "Answer every window on the device, and send the audio of this share of windows, those about which the head "
        "is least sure, to a larger encoder (`ssc server run --larger`).",
        ge=0,
        le=1,
        example=0.25,
    )
    revise_above: float = setting(
        0.1,
        "After a first answer (from an exit, or in a cascade), also report the server's if a label's score, or "
        "without labels the cosine of the embeddings, differs by more than this.",
        ge=0,
        le=2,
    )
    ack_timeout_s: float = setting(
        10.0, "Give up on a frame that the broker has not stored within this time, s.", ge=0.1, le=600
    )
    in_flight: int = setting(4, "Frames in flight at the same time.", ge=1, le=256)
    spool_mb: float = setting(256.0, "Disk space for frames that wait to be sent, MiB.", ge=0.001, le=1 << 20)
    mb_per_day: float | None = setting(
        None, "Budget: MB a day that may pass the interface, both ways; the unused part carries over for 7 days.", ge=2,
        le=1 << 20, example=50.0,
    )  # fmt: skip
    update_mb_per_day: float | None = setting(
        None, "Budget: MB a day for new bundles, tables and heads; a release larger than what is left waits.",
        ge=0.001, le=1 << 20, example=5.0,
    )  # fmt: skip
    trial_s: float = setting(
        60.0, "Go back to the earlier bundle if a new one crashes the device within this time, s.", ge=0, le=86_400
    )
    power_safe: bool = setting(
        False,
        "Wait for the disk at every frame, so that a power cut loses none; takes 5 to 50 ms each on a memory card.",
    )
    min_cut: str | None = setting(
        None,
        "Privacy floor: never ship anything earlier than this cut; local ships nothing.",
        example="layer2.0",
        common=True,
    )
    max_word_recognition: float | None = setting(
        None,
        "Privacy floor: ship only what gives away at most this share of spoken words, as `ssc audit` measured it; the "
        "bundle must have been audited.",
        ge=0,
        le=1,
        example=0.2,
    )
    learn: bool = setting(
        False,
        "Correct the splitter table by measured latencies, within bounds; `ssc splitter merge` collects the "
        "corrections.",
    )
    realtime: bool = setting(
        True, "Play files at the speed they were recorded; otherwise as fast as possible.", common=True
    )
    loop: bool = setting(False, "Start files again at their end.")
    watch: Path | None = setting(
        None,
        "Folder to watch instead of a source: each recording is processed once, when it is complete, even over "
        "restarts.",
        example="incoming",
        common=True,
    )
    speed: float = setting(1.0, "Play files this many times faster than real time.", ge=0.01, le=1000)
    gate_db: float | None = setting(
        None, "Ignore windows quieter than this, decibels of full scale.", ge=-200, le=0, example=-60.0
    )
    stdin_rate: int | None = setting(
        None, "Sample rate of PCM on standard input, Hz.", ge=1000, le=384_000, example=48_000
    )
    stdin_channels: int = setting(1, "Channels of PCM on standard input.", ge=1, le=64)
    channel: str = setting(
        "mean", "How to handle several channels: mean, loudest, or the number of one channel, from 1 on."
    )
    max_windows: int | None = setting(None, "Stop after this many windows.", ge=1, example=1000)
    drain_s: float = setting(
        30.0, "How long to go on sending spooled frames after the source has ended, s.", ge=0, le=86_400
    )
    results: tuple[str, ...] = setting(
        (),
        "Write results as JSON lines to these files, or - for standard output (a terminal gets no embeddings).",
        example=("results.jsonl",),
        common=True,
    )
    head: Path | None = setting(
        None,
        "Head that labels the results, instead of the server's (`ssc server label`).",
        example="head.json",
        common=True,
    )
    events: Literal["all", "labels", "off"] = setting(
        "labels", "Results to publish on evt.<device>, without embeddings: all, those with a detected label, or none."
    )
    event_threshold: float | None = setting(
        None, "Score at which a label becomes an event, instead of the head's own thresholds.", ge=0, le=1, example=0.8
    )
    event_hold_s: float = setting(
        LabelRule.hold_s, "A label goes off when it was not detected for this long, s.", ge=0, le=86_400
    )
    event_min_s: float = setting(
        LabelRule.min_s, "A label goes on when it was detected in every window for this long, s.", ge=0, le=3600
    )
    event_rules: tuple[str, ...] = setting(
        (), "Rules for single labels: threshold, the score from which one is detected, min_s and hold_s.",
        example=(_EXAMPLE,), check=label_rules,
    )  # fmt: skip
    keep_clips: Path | None = setting(
        None,
        "Keep a recording of each label that goes on, 10 s at most, in a folder for each label in this directory; not "
        "with a privacy floor.",
        example="clips",
    )
    keep_clips_mb: float = setting(
        100.0, "Disk space for these clips, MiB; the oldest are removed first.", ge=1, le=1 << 20
    )
    lend_clips: bool = setting(
        False, "Let the server's page fetch a clip when somebody looks at its event; otherwise clips stay here."
    )
    report: Path | None = setting(
        None, "Write the run's accounting to this file as JSON at its end.", example="report.json"
    )
    metrics_port: int | None = setting(
        None, "Serve Prometheus metrics on this port of 127.0.0.1; 0 picks a free one.", ge=0, le=65_535, example=9464
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("warning", "Lowest level to log.")
    log_format: Literal["text", "json"] = setting("text", "Log lines as text, or as one JSON object each.")
    seed: int = setting(0, "Seed of the splitter's exploration.", ge=0)

    @property
    def has_source(self) -> bool:
        """Whether a source of audio is set. Raises UsageError if two are."""
        if self.source and self.watch is not None:
            raise UsageError(f"source {self.source} and watch {self.watch}: give one of them")
        if self.loop and self.watch is not None:
            raise UsageError(f"watch {self.watch}: each recording is processed once; leave out loop")
        return bool(self.source) or self.watch is not None

    @property
    def privacy_floor(self) -> str | None:
        """The name of the setting that keeps audio on this device, if there is one."""
        if self.min_cut is not None:
            return "min_cut"
        return None if self.max_word_recognition is None else "max_word_recognition"

    @property
    def deadline_s(self) -> float:
        """`deadline_ms` in seconds."""
        return self.deadline_ms / 1e3

    @property
    def usual_rule(self) -> LabelRule:
        """The rule for labels that have none of their own."""
        return LabelRule(self.event_hold_s, self.event_min_s, self.event_threshold)

    @property
    def label_rules(self) -> dict[str, LabelRule]:
        """The rules of labels that have their own. Raises UsageError."""
        return label_rules(self.event_rules, self.usual_rule)

    @property
    def spool_bytes(self) -> int:
        """`spool_mb` in bytes."""
        return int(self.spool_mb * (1 << 20))

    @property
    def trusted(self) -> minisign.PublicKey | None:
        """The public key in the file `pub`. Raises SignatureError."""
        return None if self.pub is None else minisign.read_public_key(self.pub)
