"""`ssc server mqtt`: the fleet at a user's own MQTT broker, where Home Assistant finds it."""

from __future__ import annotations

import asyncio
import logging
import re
import signal

import click

from runtime_edge.errors import UsageError
from runtime_edge.formats.credentials import Address
from runtime_server.broker.hub import Hub
from runtime_server.cli.server_options import broker_option
from runtime_server.mqtt.discovery import Topics
from runtime_server.mqtt.mqtt_bridge import MqttAddress, MqttBridge
from runtime_server.telemetry.fleet import Fleet

_PREFIX = re.compile(r"[a-z0-9_-]{1,40}")


@click.command()
@click.argument("url", metavar="MQTT-ADDRESS", envvar="SSC_MQTT_URL")
@click.option("--prefix", default="streamsplit", show_default=True, help="First part of the topics.")
@click.option("--discovery", default="homeassistant", show_default=True, help="Home Assistant's discovery prefix.")
@broker_option
def mqtt(url: str, prefix: str, discovery: str, broker: Address) -> None:
    """Publish what devices hear to your own MQTT broker. It runs until stopped.

    Each label of each device is a retained topic, ON or OFF; Home Assistant finds them by itself. Give the address in
    SSC_MQTT_URL to keep its password out of the list of processes.

    Example: ssc server mqtt mqtt://homeassistant.local --state server/
    """
    for option, value in (("--prefix", prefix), ("--discovery", discovery)):
        if not _PREFIX.fullmatch(value):
            raise UsageError(f"{option} {value!r:.60}: use lower-case letters, digits, '_' and '-', 40 at most")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_run(MqttAddress.parse(url), Topics(prefix, discovery), broker))


async def _run(address: MqttAddress, topics: Topics, broker: Address) -> None:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)
    async with Hub(broker, "mqtt") as hub:
        bridge = MqttBridge(hub, Fleet(), address, topics)
        await bridge.run(stopping, lambda: click.echo(f"publishing at {address} below {topics.base}/"))
