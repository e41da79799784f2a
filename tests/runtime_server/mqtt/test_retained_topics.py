"""With a real client that reaches no broker, and so keeps what it takes in its queue."""

import pytest
from paho.mqtt import client as mqtt

from runtime_server.mqtt.retained_topics import RetainedTopics


@pytest.fixture
def topics():
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(2)
    return RetainedTopics(client)


def test_what_stands_there_is_not_published_again(topics):
    assert topics.is_empty
    assert topics.put("a", "on") is not None
    assert topics.put("a", "on") is None
    topics.clear()
    assert topics.is_empty
    assert topics.put("a", "on") is not None


def test_what_a_full_queue_refuses_does_not_count_as_standing_there(topics):
    topics.put("a", "on")
    topics.put("b", "on")
    for _ in range(2):
        assert topics.put("c", "on").rc == mqtt.MQTT_ERR_QUEUE_SIZE, "each time, and not only the first"
    assert topics.put("a", "off").rc == mqtt.MQTT_ERR_QUEUE_SIZE
    assert topics.put("a", "on") is None, "what stood there still does"
