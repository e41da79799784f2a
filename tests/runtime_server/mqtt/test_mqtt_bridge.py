import pytest

from runtime_edge.errors import UsageError
from runtime_server.mqtt.mqtt_bridge import MqttAddress


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://gateway", MqttAddress("gateway", 1883, False, None, None)),
        ("mqtts://gateway/", MqttAddress("gateway", 8883, True, None, None)),
        ("mqtt://ha:p%40ss@10.0.0.2:1884", MqttAddress("10.0.0.2", 1884, False, "ha", "p@ss")),
        ("mqtt://[::1]:1884", MqttAddress("::1", 1884, False, None, None)),
    ],
)
def test_an_address(url, address):
    assert MqttAddress.parse(url) == address


@pytest.mark.parametrize(
    "url", ["gateway", "nats://gateway", "mqtt://", "mqtt://u:secret@gateway:port", "mqtt://u:secret@gateway/evt", ""]
)
def test_another_address_is_one_line_without_its_password(url):
    with pytest.raises(UsageError, match=r"MQTT address .*mqtt://user:password@homeassistant.local") as caught:
        MqttAddress.parse(url)
    assert "secret" not in str(caught.value)


def test_an_address_is_shown_without_its_password():
    assert str(MqttAddress.parse("mqtts://u:secret@gateway")) == "mqtts://gateway:8883"
