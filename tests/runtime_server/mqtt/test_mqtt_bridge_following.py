"""What stands at a real MQTT broker while a bridge follows a fleet, and after its end."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from paho.mqtt import client as mqtt
from reports import REPORT
from waiting import eventually

from runtime_server.broker.broker_process import Broker
from runtime_server.broker.hub import Hub
from runtime_server.harness.ports import free_port
from runtime_server.mqtt.discovery import Topics
from runtime_server.mqtt.mqtt_bridge import MqttAddress, MqttBridge
from runtime_server.telemetry.fleet import Fleet

pytestmark = pytest.mark.integration


class Reader:
    """A client that hears all of it, from before the bridge begins.

    The devices' broker, which stands for the user's here, may keep a retained message from one that subscribes in the
    moment of its publication.
    """

    def __init__(self, port: int) -> None:
        self.stands: dict[str, str] = {}
        self.has_subscribed = False
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._heard
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _subscribed(self, *_):
        self.has_subscribed = True

    def _heard(self, _client, _data, message):
        self.stands[message.topic] = message.payload.decode()

    def status(self, *device):
        return self.stands.get("/".join(["streamsplit", *device, "status"]))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


async def no_heads():
    return {}


@pytest.fixture
def follow(tmp_path):
    """`follow(fleet, work)` runs `await work(reader, end)` beside a bridge; `await end()` ends that."""

    async def followed(fleet, work):
        broker = Broker(tmp_path / "broker", port=free_port(), mqtt_port=free_port())
        await broker.start()
        reader = Reader(broker.mqtt_port)
        await eventually(lambda: reader.has_subscribed, "the reader hears all of it")
        hub, stopping, started = Hub(broker.url, "test"), asyncio.Event(), asyncio.Event()
        await hub.connect(create=True)
        address = MqttAddress("127.0.0.1", broker.mqtt_port, False, None, None)
        bridge = MqttBridge(hub, fleet, address, Topics(), no_heads)
        running = asyncio.create_task(bridge.run(stopping, started.set))

        async def end():
            stopping.set()
            await running

        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(broker.stop)
            stack.callback(reader.close)
            stack.push_async_callback(hub.close)
            stack.push_async_callback(end)
            await asyncio.wait([running, begun := asyncio.ensure_future(started.wait())], return_when="FIRST_COMPLETED")
            begun.cancel()
            await work(reader, end)

    return lambda fleet, work: asyncio.run(followed(fleet, work))


def fleet_of(count):
    fleet = Fleet()
    for number in range(count):
        fleet.report(f"pi-{number}", REPORT | {"device": f"pi-{number}"})
    return fleet


def test_a_bridge_that_ends_says_of_every_device_that_it_is_offline(follow):
    """Of as many as do not go out at once, too."""
    names = [f"pi-{number}" for number in range(60)]

    async def work(reader, end):
        await eventually(lambda: {reader.status(), *map(reader.status, names)} == {"online"}, "all are there")
        await end()
        await eventually(lambda: reader.status() == "offline", "the bridge is gone")
        await eventually(lambda: set(map(reader.status, names)) == {"offline"}, "all are gone")
        assert len([topic for topic in reader.stands if topic.endswith("/status")]) == 1 + len(names)

    follow(fleet_of(len(names)), work)


def test_a_device_that_the_fleet_forgets_is_offline_and_told_of_anew_when_it_comes_back(follow):
    fleet, config = fleet_of(2), Topics().config("pi-0")

    async def work(reader, _end):
        await eventually(lambda: config in reader.stands and reader.status("pi-1") == "online", "both are there")
        del fleet.devices["pi-0"]
        await eventually(lambda: reader.status("pi-0") == "offline", "one is gone")
        assert reader.status("pi-1") == "online"
        reader.stands.clear()
        fleet.report("pi-0", REPORT | {"device": "pi-0"})
        await eventually(lambda: config in reader.stands and reader.status("pi-0") == "online", "it is back")

    follow(fleet, work)
