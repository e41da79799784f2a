"""The values of the retained topics at a user's broker, so that only changes are published."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

_QUEUE_IS_FULL = 15
"""The value of MQTT_ERR_QUEUE_SIZE; repeated here because the client library may not be installed."""


class RetainedTopics:
    """Publishes with `client`, and remembers what it accepted."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._payloads: dict[str, str] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no value is known."""
        return not self._payloads

    def put(self, topic: str, payload: str) -> MQTTMessageInfo | None:
        """Publish a value unless the topic already has it.

        Returns the pending publication, or None if there is nothing to do. A value that the client's full queue refuses
        is not remembered: put it again later.
        """
        if self.has(topic, payload):
            return None
        told = self._client.publish(topic, payload, qos=1, retain=True)
        if told.rc != _QUEUE_IS_FULL:
            self._payloads[topic] = payload
        return told

    def has(self, topic: str, payload: str) -> bool:
        """Whether the topic has that value, or will have it."""
        return self._payloads.get(topic) == payload

    def forget(self, topics: Iterable[str]) -> None:
        """Forget the values of these topics."""
        for topic in topics:
            self._payloads.pop(topic, None)

    def clear(self) -> None:
        """Forget all values."""
        self._payloads.clear()
