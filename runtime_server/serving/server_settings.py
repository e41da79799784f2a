"""What `ssc server run` is told: one dataclass, filled from a TOML file, the environment and the command line.

To add a setting, add a field here: the option, the key of the file, its validation and its documentation follow from
it. `ServerSettings.config` puts it where it belongs.
"""

# ruff: noqa: RUF009 - `setting` makes a dataclass field
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from runtime_edge.errors import UsageError
from runtime_edge.settings import setting
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
        None, "Use this broker, or a cluster's with commas between, instead of starting one.",
        example="nats://gateway:4222",
    )  # fmt: skip
    replicas: int = setting(1, "Brokers that keep a message.", ge=1, le=5)
    host: str = setting("127.0.0.1", "Address the embedded broker listens on.", common=True)
    port: int = setting(4222, "Its port.", common=True, ge=1, le=65_535)
    mqtt_port: int | None = setting(None, "Let MQTT clients read events on this port.", example=1883, ge=1, le=65_535)
    calibrate: Path | None = setting(
        None, "Recordings to measure int8 ranges on at every release.", example="recordings"
    )
    larger: Path | None = setting(
        None,
        "Complete what arrives as audio with this larger encoder, too, whose embeddings are mapped to those of "
        "ENCODER.PT by the recordings of calibrate.",
        example="larger.pt",
    )
    training: bool | None = setting(
        None,
        "Train on what arrives and release what got better, or complete frames only [default: train random weights, as "
        "`ssc encoder new` makes them, and no others].",
        example=True,
        common=True,
    )
    batch: int = setting(
        TrainConfig.batch,
        "Windows in a training step; of more than 4 devices it takes a quarter of these for each, up to 8 times as "
        "many.",
        ge=2,
    )
    objective: Literal["neighbours", "virtual-negatives", "simclr", "moco", "simsiam", "barlow-twins"] = setting(
        "neighbours",
        "What two views of a window are asked to be. moco keeps a second copy of the trained blocks: twice the memory "
        "of their weights.",
    )
    loss: Literal["task", "hybrid"] = setting(
        "task", "The objective alone, or with the published terms of diversity and affinity beside it."
    )
    spread: Literal["sw", "mse", "kl", "mmd", "none"] | None = setting(
        None,
        "The hybrid loss's term of diversity: sliced Wasserstein distance, or an ablation in its place [default: "
        f"{HybridConfig.spread}].",
        example="sw",
    )
    learning_rate: float = setting(TrainConfig.learning_rate, "Of the optimiser.", ge=0)
    train_share: float = setting(0.6, "Share of the time that training may take.", ge=0.01, le=1)
    checkpoint_steps: int = setting(200, "Steps between two checkpoints.", ge=1)
    replay_mb: int = setting(512, "Read so much of the stream again at a start; 0: nothing.", ge=0)
    meter: str = setting(
        AUTO,
        "What counts the joules of training: rapl, nvml, the log of a meter (.csv with time_s,watts), or CPU seconds "
        "times the watts of a target, such as rpi4. auto: rapl, if it counts; none: not at all.",
        earlier=("energy",),
    )
    idle_watts: float | None = setting(
        None, "Power of this machine at rest, for joules above it. A target brings its own.", ge=0, example=12.5
    )
    release_steps: int = setting(50, "Steps between tries.", ge=1)
    release_s: float | None = setting(
        None, "Also try after this many seconds, if anything is new.", ge=0, example=3600.0
    )
    release_least_s: float = setting(
        ReleaseConfig.least_s, "Seconds from one release to the next at least: every device fetches each of them.", ge=0
    )
    release_tolerance: float = setting(
        0.02, "Share by which the held-out loss may rise; negative: by which it must fall.", ge=-1, le=1
    )
    bottleneck_steps: int = setting(
        0,
        "Train trained bottlenecks on by so many steps in each release; the others are fitted anew anyway.",
        ge=0,
        le=10_000,
    )
    probe: Path | None = setting(None, "Labelled recordings (folder or CSV) no release may lose on.", example="clips")
    canary_share: float = setting(
        RolloutConfig.canary_share, "Share of the devices that take a generation first.", ge=0, le=1
    )
    canary_from: int = setting(RolloutConfig.canary_from, "With fewer devices all take it at once.", ge=1)
    healthy_s: float = setting(
        RolloutConfig.healthy_s,
        "Promote a generation this many seconds after its release, if the devices that have it are well.",
        ge=0,
    )
    update_mb_per_day: float | None = setting(
        None,
        "Budget: MB a day that releases may take of each device; what is unused adds up for 7 days [default: as the "
        "devices say].",
        ge=0.001,
        example=5.0,
    )
    tensorboard: Path | None = setting(None, "Directory for TensorBoard's event files of the training.", example="runs")
    web: str | None = setting(
        None,
        "Serve the page on this port of this machine, or at host:port for others, who need a token.",
        example="8081",
        common=True,
    )
    threads: int = setting(1, "Torch threads.", ge=1, common=True)
    precision: Precision = setting("float32", "What frames are completed in.")
    seed: int = setting(0, "Seed of the training.", ge=0)
    auth: bool | None = setting(
        None,
        "Let in only devices that were added [default: once one was, or --host is not this machine].",
        example=True,
        common=True,
    )
    credentials: Path | None = setting(None, "The server's nkey for an outside --broker.", example="server.nkey")
    tls_cert: Path | None = setting(
        None, "The embedded broker's certificate, or this server's own.", example="gateway.pem"
    )
    tls_key: Path | None = setting(None, "The key of that certificate.", example="gateway.key")
    tls_ca: Path | None = setting(
        None, "Check devices' certificates, or an outside broker's, against it.", example="ca.pem"
    )
    max_rate: float = setting(FRAMES_PER_S, "Frames a second one device may send for long.", ge=0.1)
    metrics_port: int | None = setting(
        None, "Answer /healthz and /metrics on this port of 127.0.0.1.", ge=0, le=65_535, example=9465,
        earlier=("health_port",),
    )  # fmt: skip
    key: Path | None = setting(
        None, "Secret key to sign with (`ssc key new`); without it the server makes its own.", example="signing.key",
        common=True,
    )  # fmt: skip

    def config(self, bundle: Path, untrained: bool) -> ServerConfig:
        """Of a server of this bundle, whose encoder is `untrained`. Raises UsageError for what does not go together."""
        return ServerConfig(
            bundle=bundle, state=self.state, broker=self.broker, replicas=self.replicas, host=self.host, port=self.port,
            mqtt_port=self.mqtt_port, key=self.key, calibrate=self.calibrate, larger=self.larger,
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
        """How the server learns."""
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
