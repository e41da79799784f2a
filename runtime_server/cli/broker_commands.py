"""`ssc server broker`: a broker by itself, for servers of several ranks, and for clusters."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import click

from runtime_edge.base.aio import finish_unless
from runtime_edge.errors import UsageError
from runtime_server.broker.access import SecurityConfig
from runtime_server.broker.broker_process import Broker, ClusterConfig, embedded
from runtime_server.cli.device_commands import broker_security_options
from streamsplit_compile.cli.options import PathParam


@click.command()
@click.option("--state", type=PathParam(), default=Path("ssc-server"), show_default=True, help="State directory.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=4222, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--mqtt-port", type=click.IntRange(1, 65535), help="Let MQTT clients read events on this port.")
@click.option("--name", help="This broker's name in its cluster.")
@click.option("--cluster-port", type=click.IntRange(1, 65535), help="Port for the other brokers of its cluster.")
@click.option(
    "--routes", help="The other brokers of its cluster: host:port with each one's --cluster-port, comma-separated."
)
@broker_security_options
def broker(
    state: Path,
    host: str,
    port: int,
    mqtt_port: int | None,
    name: str | None,
    cluster_port: int | None,
    routes: str | None,
    **settings: Any,
) -> None:
    """Run a separate broker until stopped. A server of several ranks needs one; several of them form a cluster.

    Example: ssc server broker --state server/ --name b1 --cluster-port 6222 --routes gateway-2:6222,gateway-3:6222
    """
    cluster = None
    if name is not None and cluster_port is not None and routes is not None:
        cluster = ClusterConfig(name, cluster_port, tuple(route.strip() for route in routes.split(",")))
    elif name or cluster_port or routes:
        raise UsageError("--name, --cluster-port and --routes go together: a cluster needs all three")
    running = embedded(state, host, port, mqtt_port, SecurityConfig(**settings), cluster)
    asyncio.run(_serve(running))


async def _serve(broker: Broker) -> None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    await broker.start()
    try:
        click.echo(f"broker on {broker.url}")
        if line := broker.lets_in:
            click.echo(line, err=True)
        await finish_unless(stopping, broker.keep_running())
    finally:
        await broker.stop()
