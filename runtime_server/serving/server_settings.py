"""The settings of `ssc server run`: one dataclass, filled from a TOML file, the environment and the command line.

To add a setting, add a field here: its option, its key in the file, its validation and its documentation follow from
the field. `ServerSettings.config` puts it where it is used.
"""

# ruff: noqa: RUF009 - `setting` makes a dataclass field
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from runtime_edge.errors import UsageError
from runtime_edge.settings import setting
from runtime_server.adaptation.adaptation_loop import AdaptConfig, MethodName, Statistics
from runtime_server.adaptation.recipient import Scope
from runtime_server.broker.access import SecurityConfig
from runtime_server.ingest.frame_replay import ReplayConfig
from runtime_server.ingest.rate import FRAMES_PER_S
from runtime_server.releases.release_gate import ReleaseConfig
from runtime_server.releases.rollout import RolloutConfig
from runtime_server.serving.server_config import ServerConfig
from runtime_server.suffix.suffix import Precision
from runtime_server.telemetry.energy import AUTO
from runtime_server.training.losses import LOSSES, HybridConfig
from runtime_server.training.trainer import TrainConfig


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `ssc server run`, in the order of its help and of `ssc server config`."""

    state: Path = setting(Path("ssc-server"), "State directory: keys, weights, ledgers, checkpoints.", common=True)
    broker: str | None = setting(
        None, "Use this broker instead of starting one; for a cluster several addresses, comma-separated.",
        example="nats://gateway:4222",
    )  # fmt: skip
    replicas: int = setting(1, "How many brokers keep each message.", ge=1, le=5)
    host: str = setting("127.0.0.1", "Address on which the embedded broker listens.", common=True)
    port: int = setting(4222, "Port of the embedded broker.", common=True, ge=1, le=65_535)
    mqtt_port: int | None = setting(None, "Let MQTT clients read events on this port.", example=1883, ge=1, le=65_535)
    calibrate: Path | None = setting(
        None, "Recordings on which every release measures int8 ranges.", example="recordings"
    )
    larger: Path | None = setting(
        None,
        "Also complete windows that arrive as audio with this larger encoder; the recordings of calibrate map its "
        "embeddings to those of ENCODER.PT.",
        example="larger.pt",
    )
    larger_head: Path | None = setting(
        None,
        "Head for the larger encoder's own embeddings: with it, larger teaches and judges adaptations better.",
        example="larger.head.json",
    )
    adapt: MethodName | None = setting(
        None,
        "Adapt devices to what they hear now, through their normalisation layers, from the windows that they send: "
        "joint or cema, with the encoder of larger as teacher, or tent, eata or sar without one.",
        example="cema",
    )
    adapt_scope: Scope = setting(
        AdaptConfig.scope,
        "Who has an adaptation in common: nobody but the device itself, devices of a target that hear alike, or all "
        "devices of a target.",
    )
    adapt_least_s: float = setting(
        AdaptConfig.least_s, "Minimum number of seconds between two adaptations of a device: each costs it 20 kB.", ge=1
    )
    adapt_devices: int = setting(
        AdaptConfig.devices,
        "How many devices to adapt at the same time, those heard last: each has its own encoder, teacher and windows.",
        ge=1,
    )
    adapt_statistics: Statistics = setting(
        AdaptConfig.statistics, "Whether batch norms keep their statistics or blend in those of what is heard."
    )
    training: bool | None = setting(
        None,
        "Train on what arrives and release what got better, or only complete frames [default: train only random "
        "weights, such as `ssc encoder new` makes].",
        example=True,
        common=True,
    )
    batch: int = setting(
        TrainConfig.batch,
        "Windows in a training step; beyond 4 devices each further one adds a quarter of this, up to 8 times as many.",
        ge=2,
    )
    objective: Literal["neighbours", "virtual-negatives", "simclr", "moco", "simsiam", "barlow-twins"] = setting(
        "neighbours",
        "Contrastive objective. moco keeps a second copy of the trained blocks: twice the memory of their weights.",
    )
    loss: Literal["task", "hybrid"] = setting(
        "task", "task: the objective alone; hybrid: with the published terms of diversity and affinity."
    )
    spread: Literal["sw", "mse", "kl", "mmd", "none"] | None = setting(
        None,
        "Diversity term of the hybrid loss: sliced Wasserstein distance (sw), or an ablation [default: "
        f"{HybridConfig.spread}].",
        example="sw",
    )
    learning_rate: float = setting(TrainConfig.learning_rate, "Learning rate of the optimiser.", ge=0)
    train_share: float = setting(0.6, "Share of the time that training may take.", ge=0.01, le=1)
    checkpoint_steps: int = setting(200, "Steps between two checkpoints.", ge=1)
    replay_mb: int = setting(512, "How much of the stream to read again at a start, MiB; 0: nothing.", ge=0)
    meter: str = setting(
        AUTO,
        "How to count the joules of training: rapl, nvml, the log of a power meter (.csv with time_s,watts), or a "
        "target such as rpi4 (CPU seconds times its watts). auto: rapl if it counts, else nothing.",
        earlier=("energy",),
    )
    idle_watts: float | None = setting(
        None, "Power of this machine at rest, W, for joules above idle; a target has its own.", ge=0, example=12.5
    )
    release_steps: int = setting(50, "Training steps between attempts at a release.", ge=1)
    release_s: float | None = setting(
        None, "Also attempt a release after this many seconds, if anything was trained.", ge=0, example=3600.0
    )
    release_least_s: float = setting(
        ReleaseConfig.least_s, "Minimum number of seconds between two releases: every device fetches each one.", ge=0
    )
    release_tolerance: float = setting(
        0.02, "Share by which the held-out loss may rise; negative: by which it must fall.", ge=-1, le=1
    )
    bottleneck_steps: int = setting(
        0,
        "Further training steps for trained bottlenecks in each release; the others are refitted anyway.",
        ge=0,
        le=10_000,
    )
    probe: Path | None = setting(
        None, "Labelled recordings (folder or CSV) on which no release may get worse.", example="clips"
    )
    canary_share: float = setting(
        RolloutConfig.canary_share, "Share of the devices that take a generation first.", ge=0, le=1
    )
    canary_from: int = setting(
        RolloutConfig.canary_from, "With fewer devices than this, all take a generation at once.", ge=1
    )
    healthy_s: float = setting(
        RolloutConfig.healthy_s,
        "Promote a generation this many seconds after its release, if its devices are well.",
        ge=0,
    )
    update_mb_per_day: float | None = setting(
        None,
        "Budget: MB a day that releases may cost each device; the unused part carries over for 7 days [default: the "
        "devices' own budgets].",
        ge=0.001,
        example=5.0,
    )
    tensorboard: Path | None = setting(None, "Directory for TensorBoard event files of the training.", example="runs")
    web: str | None = setting(
        None,
        "Serve the page on this port of this machine, or at host:port for other machines, which need a token.",
        example="8081",
        common=True,
    )
    threads: int = setting(1, "Torch threads.", ge=1, common=True)
    precision: Precision = setting("float32", "Number format in which frames are completed.")
    seed: int = setting(0, "Seed of the training.", ge=0)
    auth: bool | None = setting(
        None,
        "Admit only devices that were added [default: on once one was added, or if --host is not loopback].",
        example=True,
        common=True,
    )
    credentials: Path | None = setting(None, "The server's nkey for an outside --broker.", example="server.nkey")
    tls_cert: Path | None = setting(
        None, "The embedded broker's certificate, or this server's own.", example="gateway.pem"
    )
    tls_key: Path | None = setting(None, "The key of that certificate.", example="gateway.key")
    tls_ca: Path | None = setting(
        None, "Authority for checking the certificates of devices, or of an outside broker.", example="ca.pem"
    )
    max_rate: float = setting(FRAMES_PER_S, "Frames a second that one device may send on average.", ge=0.1)
    metrics_port: int | None = setting(
        None, "Serve /healthz and /metrics on this port of 127.0.0.1.", ge=0, le=65_535, example=9465,
        earlier=("health_port",),
    )  # fmt: skip
    key: Path | None = setting(
        None, "Secret key to sign with (`ssc key new`); without it the server makes its own.", example="signing.key",
        common=True,
    )  # fmt: skip

    def config(self, bundle: Path, untrained: bool) -> ServerConfig:
        """The configuration for a server of this bundle; `untrained`: its encoder has random weights.

        Raises UsageError for settings that do not go together.
        """
        return ServerConfig(
            bundle=bundle, state=self.state, broker=self.broker, replicas=self.replicas, host=self.host, port=self.port,
            mqtt_port=self.mqtt_port, key=self.key, calibrate=self.calibrate, larger=self.larger,
            larger_head=self.larger_head,
            adapt=AdaptConfig(
                self.adapt, self.adapt_scope, self.adapt_least_s, self.adapt_devices, self.adapt_statistics
            ),
            training=untrained if self.training is None else self.training,
            threads=self.threads, precision=self.precision, train=self._train(),
            security=SecurityConfig(self.auth, self.credentials, self.tls_cert, self.tls_key, self.tls_ca),
            max_rate=self.max_rate, health_port=self.metrics_port, web=self.web, energy=self.meter,
            idle_watts=self.idle_watts, tensorboard=self.tensorboard, checkpoint_steps=self.checkpoint_steps,
            replay=ReplayConfig(max_bytes=self.replay_mb << 20),
            release=ReleaseConfig(
                self.release_steps, self.release_s, self.release_least_s, self.release_tolerance,
                bottleneck_steps=self.bottleneck_steps,
            ),
            probe=self.probe,
            rollout=RolloutConfig(
                canary_share=self.canary_share, canary_from=self.canary_from, healthy_s=self.healthy_s,
                update_mb_per_day=self.update_mb_per_day,
            ),
        )  # fmt: skip

    def _train(self) -> TrainConfig:
        """The configuration of training."""
        loss = LOSSES[self.loss]
        if self.spread is not None:
            if loss.spread is None:
                raise UsageError(
                    f"--spread {self.spread}: only the hybrid loss has such a term; give --loss hybrid, too"
                )
            loss = replace(loss, spread=None if self.spread == "none" else self.spread)
        return TrainConfig(
            batch=self.batch, objective=self.objective, learning_rate=self.learning_rate, seed=self.seed,
            share=self.train_share, loss=loss,
        )  # fmt: skip
