"""`ssc server run`, and the group of the other commands about a server."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_server.cli.broker_commands import broker
from runtime_server.cli.dead_letter_commands import dead
from runtime_server.cli.device_commands import device, security_configs, security_options
from runtime_server.cli.label_commands import label
from runtime_server.cli.mqtt_command import mqtt
from runtime_server.cli.release_commands import release_configs, release_options, releases
from runtime_server.cli.server_status_command import status
from runtime_server.ingest.frame_replay import ReplayConfig
from runtime_server.server import Server
from runtime_server.serving.server_config import ServerConfig
from runtime_server.serving.server_status import ServerParts
from runtime_server.telemetry.energy import AUTO
from runtime_server.training.losses import LOSSES, HybridConfig
from runtime_server.training.losses.hybrid import SPREAD_TERMS
from runtime_server.training.losses.objectives import OBJECTIVES
from runtime_server.training.ranks import Ranks
from runtime_server.training.trainer import TrainConfig
from streamsplit_compile.cli.options import (
    ENCODER_OPTIONS,
    PathParam,
    bundle_argument,
    encoder_options,
    key_option,
    together,
)
from streamsplit_compile.encoder.encoders import LoadedEncoder, load_encoder

_broker_options = together(
    click.option("--broker", help="Use this broker, or a cluster's with commas between, instead of starting one."),
    click.option(
        "--replicas", default=1, show_default=True, type=click.IntRange(1, 5), help="Brokers that keep a message."
    ),
    click.option("--host", default="127.0.0.1", show_default=True, help="Address the embedded broker listens on."),
    click.option("--port", default=4222, show_default=True, type=click.IntRange(1, 65535), help="Its port."),
    click.option("--mqtt-port", type=click.IntRange(1, 65535), help="Let MQTT clients read events on this port."),
)
"""Which broker serves the devices."""

_training_options = together(
    click.option(
        "--training/--no-training",
        default=None,
        help="Train on what arrives and release what got better, or complete frames only [default: train random "
        "weights, as `ssc encoder new` makes them, and no others].",
    ),
    click.option(
        "--batch",
        default=TrainConfig.batch,
        show_default=True,
        type=click.IntRange(2),
        help="Windows in a training step; of more than 4 devices it takes a quarter of these for each, up to 8 times "
        "as many.",
    ),
    click.option(
        "--objective",
        default=TrainConfig.objective,
        show_default=True,
        type=click.Choice(list(OBJECTIVES)),
        help="What two views of a window are asked to be. moco keeps a second copy of the trained blocks: twice the "
        "memory of their weights.",
    ),
    click.option(
        "--loss",
        default="task",
        show_default=True,
        type=click.Choice(list(LOSSES)),
        help="The objective alone, or with the published terms of diversity and affinity beside it.",
    ),
    click.option(
        "--spread",
        type=click.Choice([*SPREAD_TERMS, "none"]),
        help="The hybrid loss's term of diversity: sliced Wasserstein distance, or an ablation in its place "
        f"[default: {HybridConfig.spread}].",
    ),
    click.option(
        "--learning-rate", default=TrainConfig.learning_rate, show_default=True, type=float, help="Of the optimiser."
    ),
    click.option(
        "--train-share",
        default=0.6,
        show_default=True,
        type=click.FloatRange(0.01, 1.0),
        help="Share of the time that training may take.",
    ),
    click.option(
        "--checkpoint-steps",
        default=200,
        show_default=True,
        type=click.IntRange(1),
        help="Steps between two checkpoints.",
    ),
    click.option(
        "--replay-mb",
        default=512,
        show_default=True,
        type=click.IntRange(0),
        help="Read so much of the stream again at a start; 0: nothing.",
    ),
    click.option(
        "--energy",
        default=AUTO,
        show_default=True,
        help="Count the joules of training by rapl, nvml, the log of a meter (.csv with time_s,watts), or CPU seconds "
        "times the watts of a target, such as rpi4. auto: rapl, if it counts; none: not at all.",
    ),
    click.option(
        "--idle-watts",
        type=click.FloatRange(0),
        help="Power of this machine at rest, for joules above it. A target brings its own.",
    ),
)
"""Whether and how the server trains."""


_recordings_options = together(
    click.option("--calibrate", type=PathParam(), help="Recordings to measure int8 ranges on at every release."),
    click.option(
        "--larger",
        metavar="LARGER.PT",
        type=PathParam(),
        help="Complete what arrives as audio with this larger encoder, too, whose embeddings are mapped to those of "
        "ENCODER.PT by the recordings of --calibrate.",
    ),
)


@click.group()
def server() -> None:
    """Run and look at the server.

    Example: ssc server run encoder.pt bundle/ --state server/
    """


@server.command()
@click.argument("encoder_file", metavar="ENCODER.PT", type=PathParam())
@bundle_argument
@click.option("--state", type=PathParam(), default=Path("ssc-server"), show_default=True, help="State directory.")
@_broker_options
@_recordings_options
@_training_options
@release_options
@click.option("--tensorboard", type=PathParam(), help="Directory for TensorBoard's event files of the training.")
@click.option(
    "--web", help="Serve the page on this port of this machine, or at host:port for others, who need a token."
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Torch threads.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="What frames are completed in.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the training.")
@security_options
@encoder_options
@key_option
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def run(
    encoder_file: Path,
    bundle: Path,
    training: bool | None,
    replay_mb: int,
    verbose: bool,
    **settings: Any,
) -> None:
    """Complete frames and, where that is on, train on them and release new generations, until stopped.

    Example: ssc server run encoder.pt bundle/ --state server/ --host 0.0.0.0
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    encoder = _load(encoder_file, bundle, **{name: settings.pop(name) for name in ENCODER_OPTIONS})
    if training is None and not encoder.untrained:
        click.echo("these weights are served as they are; --training trains them and releases them anew", err=True)
    config = ServerConfig(
        bundle=bundle,
        training=encoder.untrained if training is None else training,
        train=_train_config(settings),
        replay=ReplayConfig(max_bytes=replay_mb << 20),
        **release_configs(settings),
        **security_configs(settings),
        **settings,
    )
    ranks = Ranks.join()
    try:
        asyncio.run(_serve(Server(encoder, config, ranks)))
    finally:
        ranks.leave()


def _train_config(settings: dict[str, Any]) -> TrainConfig:
    """How the server learns; its options are taken out of `settings`."""
    loss, spread = LOSSES[settings.pop("loss")], settings.pop("spread")
    if spread is not None:
        if loss.spread is None:
            raise UsageError(f"--spread {spread}: only the hybrid loss has such a term; give --loss hybrid, too")
        loss = replace(loss, spread=None if spread == "none" else spread)
    return TrainConfig(
        **{name: settings.pop(name) for name in ("batch", "objective", "learning_rate", "seed")},
        share=settings.pop("train_share"),
        loss=loss,
    )


def _load(
    encoder_file: Path,
    bundle: Path,
    factory: str | None,
    sample_rate: int | None,
    unsafe_load: bool,
    front_end: str | None,
) -> LoadedEncoder:
    """The encoder of a bundle. Raises UsageError when options that the bundle was compiled with are not given."""
    recorded = open_bundle(bundle).manifest.info.encoder.load
    return load_encoder(encoder_file, factory, sample_rate, unsafe_load, recorded, front_end)


server.add_command(broker)
server.add_command(device)
server.add_command(releases)
server.add_command(label)
server.add_command(status)
server.add_command(dead)
server.add_command(mqtt)


async def _serve(server: Server) -> None:
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, server.stop)
    status = await server.run(lambda parts: _say_started(server, parts))
    click.echo(f"stopped after {sum(status['windows'].values())} windows, {status['training_steps']} training steps")


def _say_started(server: Server, parts: ServerParts) -> None:
    key, ranks = parts.loaded.key.public.to_text().splitlines()[1], parts.ranks
    who = "" if ranks.world == 1 else f"rank {ranks.rank} of {ranks.world}: "
    click.echo(f"{who}serving generation {parts.loaded.rollout.base} on {server.url}, public key {key}")
    if parts.broker is not None and (line := parts.broker.lets_in):
        click.echo(line, err=True)
    if server.page is not None:
        token = f", with the token in {server.page.token_file}" if server.page.token_file else ""
        click.echo(f"page on {server.page.url}{token}")
