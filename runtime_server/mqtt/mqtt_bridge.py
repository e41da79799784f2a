"""Publishes the fleet at a user's MQTT broker, as a client of that broker with retained topics and a last will."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from runtime_edge.errors import LinkError, MissingExtra, UsageError
from runtime_edge.formats.records.head import Head
from runtime_server.broker.hub import Hub
from runtime_server.broker.pushed_heads import pushed_heads
from runtime_server.mqtt.discovery import (
    MAX_LABELS,
    OFFLINE,
    ONLINE,
    KnownLabels,
    Topics,
    device_event,
    device_topics,
    retained,
)
from runtime_server.mqtt.retained_topics import RetainedTopics
from runtime_server.telemetry.device_view import DeviceView
from runtime_server.telemetry.fleet import Fleet
from runtime_server.telemetry.fleet_watch import watch_fleet

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

_LOG = logging.getLogger(__name__)
_LOOK_S, _SWEEP_S, _HEADS_S = 0.2, 5.0, 30.0
_KEEPALIVE_S, _PATIENCE_S, _LEAVE_S = 30, 10.0, 20.0
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_EXAMPLE = "mqtt://user:password@homeassistant.local:1883"


@dataclass(frozen=True)
class MqttAddress:
    """The address of the user's broker."""

    host: str
    port: int
    tls: bool
    user: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> MqttAddress:
        """Parse `mqtt://user:password@host:port`, or `mqtts://` for TLS. Raises UsageError, without the password."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise UsageError(f"the MQTT address has no valid port; write it as {_EXAMPLE}") from None
        if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/"):
            raise UsageError(f"the MQTT address is not of the form {_EXAMPLE}")
        user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
        return cls(parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "mqtts", user, password)

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


class MqttBridge:
    """Follows a fleet and publishes what has changed.

    Args:
        hub: connected to the devices' broker.
        fleet: kept up to date here.
        address: the user's broker.
        topics: where to publish there.
        heads: returns the heads that devices have, by recipient.
    """

    def __init__(
        self,
        hub: Hub,
        fleet: Fleet,
        address: MqttAddress,
        topics: Topics,
        heads: Callable[[], Awaitable[dict[str, Head]]] | None = None,
    ) -> None:
        self._hub, self._fleet, self._address, self._topics = hub, fleet, address, topics
        self._heads = heads or self._pushed_heads
        self._loop = asyncio.get_running_loop()
        self._client = _client(address, topics, self._on_connect, self._on_disconnect)
        self._known: dict[str, KnownLabels] = {}
        self._head_labels: dict[str, tuple[str, ...]] = {}
        self._published = RetainedTopics(self._client)
        self._revision = self._number = 0
        self._refused = ""
        self._connected, self._answered = asyncio.Event(), asyncio.Event()

    async def run(self, stopping: asyncio.Event, on_started: Callable[[], None]) -> None:
        """Run until `stopping` is set; `on_started` is called once, when the first state is published.

        Raises LinkError if either broker refuses the connection, or does not answer at the start.
        """
        self._client.connect_async(self._address.host, self._address.port, _KEEPALIVE_S)
        self._client.loop_start()
        try:
            await self._started()
            await watch_fleet(self._hub, self._fleet)
            await self._follow(stopping, on_started)
        finally:
            if self._client.is_connected():
                await self._take_leave()
            self._client.disconnect()
            await asyncio.to_thread(self._client.loop_stop)

    async def _started(self) -> None:
        try:
            await asyncio.wait_for(self._answered.wait(), _PATIENCE_S)
        except asyncio.TimeoutError:
            raise LinkError(f"{self._address}: nothing answers there; is an MQTT broker running?") from None
        if self._refused:
            raise LinkError(f"{self._address}: {self._refused}; give a user that it knows")

    async def _take_leave(self) -> None:
        """Publish `offline` for everything: after a deliberate disconnect the broker does not send the last will."""
        topics = [self._topics.status, *(self._topics.of(device, "status") for device in sorted(self._fleet.devices))]
        told = [self._published.put(topic, OFFLINE) for topic in topics]
        await asyncio.to_thread(_wait_for, [one for one in told if one is not None], _LEAVE_S)

    async def _follow(self, stopping: asyncio.Event, on_started: Callable[[], None]) -> None:
        swept = asked = float("-inf")
        while not stopping.is_set():
            now = self._loop.time()
            if now - asked >= _HEADS_S:
                asked = now
                await self._look_at_heads()
            if self._connected.is_set():
                every = now - swept >= _SWEEP_S or self._published.is_empty
                swept = now if every else swept
                self._publish_changes(every)
                on_started()
                on_started = _nothing
            await asyncio.wait([waiting := asyncio.ensure_future(stopping.wait())], timeout=_LOOK_S)
            waiting.cancel()

    async def _look_at_heads(self) -> None:
        try:
            heads = await self._heads()
        except LinkError as exc:
            _LOG.warning("%s", exc)
            return
        self._head_labels = {name: head.labels for name, head in heads.items() if len(head.labels) <= MAX_LABELS}

    async def _pushed_heads(self) -> dict[str, Head]:
        return await pushed_heads(self._hub, await self._hub.signing_key())

    def _publish_changes(self, every: bool) -> None:
        """Publish what devices have reported since the last call; with `every`, also which of them are gone."""
        self._published.put(self._topics.status, ONLINE)
        for event in self._fleet.later(self._number):
            self._number = event.number
            if event.label:
                self._labels(event.device).note(event.label, event.score or 0.0, event.head_generation)
            self._client.publish(self._topics.of(event.device, "event"), device_event(event), qos=1)
        views = list(self._fleet.devices.values()) if every else self._fleet.changed(self._revision)
        self._revision = self._fleet.revision
        for view in views:
            self._publish_device(view)
        if every:
            for device in self._known.keys() - self._fleet.devices.keys():
                self._forget(device)

    def _publish_device(self, view: DeviceView) -> None:
        known = self._labels(view.name)
        head = f"{view.target} of {view.name}"
        known.add(self._head_labels.get(head, self._head_labels.get(view.target, ())))
        known.add(view.on)
        for topic, payload in retained(view, self._fleet.is_alive(view), known, self._topics).items():
            self._published.put(topic, payload)

    def _forget(self, device: str) -> None:
        """Drop all that is kept of a device the fleet has forgotten, once the client has accepted its `offline`."""
        status = self._topics.of(device, "status")
        self._published.put(status, OFFLINE)
        if self._published.has(status, OFFLINE):
            self._published.forget(device_topics(device, self._known.pop(device), self._topics))

    def _labels(self, device: str) -> KnownLabels:
        return self._known.setdefault(device, KnownLabels())

    def _on_connect(self, refused: str) -> None:
        """Called in the client's thread."""
        self._loop.call_soon_threadsafe(self._connection_changed, refused, not refused)

    def _on_disconnect(self) -> None:
        """Called in the client's thread, which reconnects by itself."""
        self._loop.call_soon_threadsafe(self._connection_changed, "", False)

    def _connection_changed(self, refused: str, connected: bool) -> None:
        if connected or refused:
            self._refused = refused
            self._answered.set()
        if connected:
            self._published.clear()  # its last will was published, and it may have forgotten the rest
            self._connected.set()
            return
        self._connected.clear()
        if not self._published.is_empty:
            _LOG.warning("%s: %s; trying again", self._address, refused or "the connection is lost")


def _nothing() -> None:
    """Does nothing: the bridge has started already."""


def _wait_for(told: list[MQTTMessageInfo], patience_s: float) -> None:
    """Wait until the broker has all of it, at most `patience_s`."""
    deadline = time.monotonic() + patience_s
    for one in told:
        with contextlib.suppress(ValueError, RuntimeError):  # it was not accepted, or the connection is lost
            one.wait_for_publish(max(deadline - time.monotonic(), 0.0))


def _client(
    address: MqttAddress, topics: Topics, on_connect: Callable[[str], None], on_disconnect: Callable[[], None]
) -> Client:
    """A client whose last will tells the broker's users when it is gone. Raises MissingExtra."""
    try:
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError:
        raise MissingExtra("paho-mqtt", "mqtt") from None

    def connected(_client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        on_connect(f"it refuses the connection ({reason})" if reason.is_failure else "")

    def disconnected(*_: Any) -> None:
        on_disconnect()

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    client.on_connect, client.on_disconnect = connected, disconnected
    client.will_set(topics.status, OFFLINE, qos=1, retain=True)
    client.reconnect_delay_set(1, 30)
    client.max_queued_messages_set(10_000)
    if address.user is not None:
        client.username_pw_set(address.user, address.password)
    if address.tls:
        client.tls_set_context(ssl.create_default_context())
    return client
