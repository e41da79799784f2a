"""What MQTT clients of different versions are told by the real broker."""

import asyncio
import socket

import pytest
from paho.mqtt import client as mqtt
from waiting import PATIENCE_S

from runtime_server.broker.broker_process import Broker
from runtime_server.harness.ports import free_port

pytestmark = pytest.mark.integration

ACCEPTED, UNACCEPTABLE = 0, 1
"""Return codes of MQTT 3.1.1's CONNACK."""


@pytest.fixture(scope="module")
def mqtt_port(tmp_path_factory):
    port = free_port()
    broker = Broker(tmp_path_factory.mktemp("mqtt") / "broker", port=free_port(), mqtt_port=port)
    asyncio.run(broker.start())
    yield port
    asyncio.run(broker.stop())


def connack(port, level, properties=b""):
    """The first four bytes that the broker answers to a CONNECT of a protocol level."""
    body = b"\0\4MQTT" + bytes([level, 2]) + b"\0\x3c" + properties + b"\0\5phone"
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        client.sendall(bytes([0x10, len(body)]) + body)
        answer = b""
        while len(answer) < 4 and (more := client.recv(4)):
            answer += more
    return answer


@pytest.mark.parametrize(
    ("level", "properties", "code"),
    [(4, b"", ACCEPTED), (5, b"\0", UNACCEPTABLE), (6, b"\0", UNACCEPTABLE)],
)
def test_versions_after_3_1_1_are_answered_with_unacceptable_protocol_version(mqtt_port, level, properties, code):
    assert connack(mqtt_port, level, properties) == bytes([0x20, 2, 0, code])


@pytest.mark.parametrize(
    ("version", "said"), [(mqtt.MQTTv311, "Success"), (mqtt.MQTTv5, "Unsupported protocol version")]
)
def test_paho_says_what_docs_events_says(mqtt_port, version, said):
    heard = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=version)
    client.on_connect = lambda client, data, flags, reason, properties: heard.append(str(reason))
    client.connect("127.0.0.1", mqtt_port)
    while not heard and client.loop(PATIENCE_S) == mqtt.MQTT_ERR_SUCCESS:
        pass
    client.disconnect()
    assert heard == [said]
