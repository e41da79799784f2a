"""What stands at each retained topic of a user's broker, so that only what differs is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo


class RetainedTopics:
    """Publishes with `client`, and remembers what it took."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._payloads: dict[str, str] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of what stands there."""
        return not self._payloads

    def put(self, topic: str, payload: str) -> MQTTMessageInfo | None:
        """Publish it unless it stands there; returns how that goes, None where there was nothing to do."""
        if self._payloads.get(topic) == payload:
            return None
        self._payloads[topic] = payload
        return self._client.publish(topic, payload, qos=1, retain=True)

    def clear(self) -> None:
        """Nothing is known any more of what stands there."""
        self._payloads.clear()
