"""`ssc server run`, and the group of the other commands about a server."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from typing import Any

import click

from runtime_edge.formats.bundle import open_bundle
from runtime_server.cli.broker_commands import broker
from runtime_server.cli.dead_letter_commands import dead
from runtime_server.cli.device_commands import device, security_configs, security_options
from runtime_server.cli.label_commands import label
from runtime_server.cli.release_commands import release_configs, release_options, releases
from runtime_server.cli.server_status_command import status
from runtime_server.ingest.frame_replay import ReplayConfig
from runtime_server.server import Server
from runtime_server.serving.server_config import ServerConfig
from runtime_server.serving.server_status import ServerParts
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
    click.option("--no-training", "training", flag_value=False, default=True, help="Complete frames only."),
    click.option(
        "--batch",
        default=TrainConfig.batch,
        show_default=True,
        type=click.IntRange(2),
        help="Windows in a training step.",
    ),
    click.option("--learning-rate", default=TrainConfig.learning_rate, show_default=True, type=float),
    click.option("--train-share", default=0.6, show_default=True, type=click.FloatRange(0.01, 1.0)),
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
)
"""Whether and how the server trains."""


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
@click.option("--calibrate", type=PathParam(), help="Recordings to measure int8 ranges on at every release.")
@_training_options
@release_options
@click.option("--tensorboard", type=PathParam(), help="Directory for TensorBoard's event files of the training.")
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
    training: bool,
    batch: int,
    learning_rate: float,
    train_share: float,
    replay_mb: int,
    seed: int,
    verbose: bool,
    **settings: Any,
) -> None:
    """Complete frames, train on them, and release new generations, until stopped.

    Example: ssc server run encoder.pt bundle/ --state server/ --host 0.0.0.0
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    encoder = _load(encoder_file, bundle, **{name: settings.pop(name) for name in ENCODER_OPTIONS})
    config = ServerConfig(
        bundle=bundle,
        training=training,
        train=TrainConfig(batch=batch, learning_rate=learning_rate, share=train_share, seed=seed),
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


async def _serve(server: Server) -> None:
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, server.stop)
    status = await server.run(lambda parts: _say_started(server.url, parts))
    click.echo(f"stopped after {sum(status['windows'].values())} windows, {status['training_steps']} training steps")


def _say_started(url: str, parts: ServerParts) -> None:
    key, ranks = parts.loaded.key.public.to_text().splitlines()[1], parts.ranks
    who = "" if ranks.world == 1 else f"rank {ranks.rank} of {ranks.world}: "
    click.echo(f"{who}serving generation {parts.loaded.rollout.base} on {url}, public key {key}")
    if parts.broker is not None and (line := parts.broker.lets_in):
        click.echo(line, err=True)
