"""`ssc server run`, and the group of all commands about a server."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import click

from runtime_edge.base.aio import cancel_all
from runtime_edge.click_options import ManyOptions
from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.sd_notify import Notifier
from runtime_edge.settings import as_toml, common_names, load, options, read
from runtime_edge.systemd import need_root, own_program
from runtime_server.cli.broker_commands import broker
from runtime_server.cli.dead_letter_commands import dead
from runtime_server.cli.device_commands import device
from runtime_server.cli.label_commands import label
from runtime_server.cli.mqtt_command import mqtt
from runtime_server.cli.release_commands import releases
from runtime_server.cli.server_access import check_owner
from runtime_server.cli.server_status_command import status
from runtime_server.server import Server
from runtime_server.serving.live_status import show_status
from runtime_server.serving.server_settings import ServerSettings
from runtime_server.serving.server_status import ServerParts, ServerStatus
from runtime_server.serving.server_unit import SERVER, bring, files, tell_systemd
from runtime_server.training.ranks import Ranks
from streamsplit_compile.cli.options import (
    ENCODER_OPTIONS,
    PathParam,
    encoder_options,
    json_option,
)
from streamsplit_compile.cli.printing import print_json
from streamsplit_compile.encoder.encoders import LoadedEncoder, load_encoder


@click.group()
def server() -> None:
    """Run and inspect the server.

    Example: ssc server run encoder.pt bundle/ --state server/
    """


@server.command(
    cls=ManyOptions, common=[*common_names(ServerSettings), "config", "quiet", "verbose"],
    context_settings={"auto_envvar_prefix": "SSC_SERVER"},
)  # fmt: skip
@click.argument("encoder_file", metavar="ENCODER.PT", type=PathParam(), envvar="SSC_SERVER_ENCODER")
@click.argument("bundle", type=PathParam(), envvar="SSC_SERVER_BUNDLE")
@click.option("--config", type=PathParam(), help="TOML file of settings; `ssc server config` prints one.")
@options(ServerSettings)
@encoder_options
@click.option("-q", "--quiet", is_flag=True, allow_from_autoenv=False, help="Show no status line on the terminal.")
@click.option("-v", "--verbose", is_flag=True, allow_from_autoenv=False, help="Log what happens.")
def run(encoder_file: Path, bundle: Path, config: Path | None, quiet: bool, verbose: bool, **given: Any) -> None:
    """Run the server until stopped. It completes frames and, if training is on, trains on them and releases
    generations.

    Every option from --state to --key is also a key in the file (`--metrics-port` is metrics_port) and an environment
    variable (SSC_SERVER_METRICS_PORT). The command line overrides the environment, which overrides the file.

    Example: ssc server run encoder.pt bundle/ --state server/ --host 0.0.0.0
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    encoder_file_options = {name: given.pop(name) for name in ENCODER_OPTIONS}
    settings = load(ServerSettings, config, given)
    check_owner(settings.state)
    encoder = _load(encoder_file, bundle, **encoder_file_options)
    if settings.training is None and not encoder.untrained:
        click.echo(
            "these weights are not trained; with --training the server trains them and releases new generations",
            err=True,
        )
    ranks = Ranks.join()
    try:
        server = Server(encoder, settings.config(bundle, encoder.untrained), ranks)
        asyncio.run(_serve(server, live=not quiet and not verbose and sys.stderr is not None and sys.stderr.isatty()))
    finally:
        ranks.leave()


@server.command("config")
@click.argument("file", required=False, type=PathParam())
def config_(file: Path | None) -> None:
    """Print every setting with its default and meaning, as TOML. With FILE, check it and print it in full.

    Example: ssc server config > ssc-server.toml
    """
    click.echo(as_toml(ServerSettings, read(ServerSettings, file) if file else None), nl=False)


@server.command()
@click.argument("encoder_file", metavar="ENCODER.PT", type=PathParam())
@click.argument("bundle", type=PathParam())
@click.option("--config", type=PathParam(), help="TOML file of the server's settings, to start from.")
@click.option("--root", type=PathParam(), help="Write below this directory, for an image or a preview.")
@click.option("--print", "show", is_flag=True, help="Print the files and write none.")
@json_option
def install(
    encoder_file: Path, bundle: Path, config: Path | None, root: Path | None, show: bool, as_json: bool
) -> None:
    """Install the server as a service. It gets a systemd unit, a user, its settings and copies of both files.

    Example: ssc server install encoder.pt bundle/
    """
    if as_json and show:
        raise UsageError("--print: prints files; leave out --json")
    settings = {} if config is None else read(ServerSettings, config)
    if not show:
        need_root("a service", root)
        bring(encoder_file, bundle, root)
    told = SERVER.install(files(settings), root, show, quiet=as_json)
    if as_json:
        print_json(told)
    elif not show:
        click.echo(
            f"next: edit {SERVER.config}, then\n"
            f"  systemd-sysusers && systemctl daemon-reload && systemctl enable --now {SERVER.name}\n"
            f"  systemctl status {SERVER.name}; journalctl -u {SERVER.name}; as its user for what is in its state:\n"
            f"  sudo -u {SERVER.name} {own_program()} server status --state {SERVER.state}"
        )


def _load(
    encoder_file: Path,
    bundle: Path,
    factory: str | None,
    sample_rate: int | None,
    unsafe_load: bool,
    front_end: str | None,
) -> LoadedEncoder:
    """The encoder of a bundle. Raises UsageError if options that the bundle was compiled with are missing."""
    recorded = open_bundle(bundle).manifest.info.encoder.load
    return load_encoder(encoder_file, factory, sample_rate, unsafe_load, recorded, front_end)


server.add_command(broker)
server.add_command(device)
server.add_command(releases)
server.add_command(label)
server.add_command(status)
server.add_command(dead)
server.add_command(mqtt)


async def _serve(server: Server, live: bool) -> None:
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, server.stop)
    shown: list[asyncio.Task[None]] = []

    def started(parts: ServerParts) -> None:
        _say_started(server, parts)
        shown.append(asyncio.create_task(tell_systemd(ServerStatus(parts), Notifier())))
        if live:
            shown.append(asyncio.create_task(show_status(ServerStatus(parts))))

    try:
        status = await server.run(started)
    finally:
        await cancel_all(shown)
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
