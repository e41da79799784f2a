"""What Home Assistant itself makes of our descriptions of devices, and another project's models of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from installed import Environment

from runtime_server.mqtt.discovery import KnownLabels, Topics, discovery
from runtime_server.telemetry.device_view import DeviceView

HOME_ASSISTANT = os.environ.get("SSC_TEST_HOME_ASSISTANT")
SCRIPT = Path(__file__).parents[1] / "data" / "ask_home_assistant.py"
LABELS = ("rain", "Dog (big)", "wächter", "+/#", "{{ states('x') }}", "<b>", "a" * 200)
WRONG = {
    "no class of sounds": ('"device_class":"sound"', '"device_class":"noise"'),
    "no place for the state": ('"state_topic"', '"stat_topic"'),
    "a template that does not end": ("value_json.state }}", "value_json.state }"),
    "no origin": ('"origin"', '"origins"'),
    "a place with a wildcard": ("streamsplit/pi-1/state", "streamsplit/#/state"),
    "nothing that tells it from others": ('"identifiers":["streamsplit-pi-1"]', '"identifiers":[]'),
}


def payloads():
    """As they are published: of a device of which much is known, and of one of which nothing is."""
    known = KnownLabels()
    known.add(LABELS)
    known.note("rain", 0.93, 3)
    views = [DeviceView(name="pi-1", seen=1.0, target="rpi4", software="0.2.0"), DeviceView(name="x", seen=1.0)]
    return [
        json.dumps(discovery(views[0], known, Topics()), ensure_ascii=False, separators=(",", ":")),
        json.dumps(discovery(views[1], KnownLabels(), Topics("base", "ha")), separators=(",", ":")),
    ]


def ask(*texts):
    body = "[" + ",".join(texts) + "]"
    return subprocess.run([HOME_ASSISTANT, str(SCRIPT)], input=body, capture_output=True, text=True, check=False)


home_assistant = pytest.mark.skipif(
    not HOME_ASSISTANT, reason="set SSC_TEST_HOME_ASSISTANT (a Python that has the package homeassistant)"
)


@home_assistant
@pytest.mark.slow
def test_home_assistant_takes_our_devices():
    said = ask(*payloads())
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() >= "2024.11", "the first that knows descriptions of devices"


@home_assistant
@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_home_assistant_refuses_what_is_wrong(wrong):
    before, after = WRONG[wrong]
    (text, _) = payloads()
    assert before in text
    said = ask(text.replace(before, after))
    assert said.returncode != 0
    assert "Invalid" in said.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ha-mqtt-models-pydantic needs Python 3.11")
def test_another_project_s_models_know_every_field(tmp_path):
    """In an environment of its own: it needs a newer pydantic than the compiler for TFLite bears."""
    environment = Environment.made(tmp_path / "models", "ha-mqtt-models-pydantic", "")
    asked = tmp_path / "payloads.json"
    asked.write_text(json.dumps([json.loads(text) for text in payloads()]))
    said = json.loads(environment.python(MODELS, asked))
    assert [device["name"] for device in said] == ["pi-1", "x"]
    assert [device["unknown"] for device in said] == [[], []], "fields that nobody reads"
    assert said[0]["components"] > len(LABELS)


MODELS = """
import json, pathlib, sys
import ha_mqtt_models_pydantic as models

def unknown(given, model):
    return sorted(set(given) - {field.alias or name for name, field in type(model).model_fields.items()})

told = []
for payload in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    device = models.parse_device_discovery_payload(payload, expand_aliases=False)
    fields = unknown(payload, device)
    for component in payload["components"].values():
        own = models.parse_component_payload(component["platform"], component, expand_aliases=False)
        assert own.unique_id
        fields += [name for name in unknown(component, own) if name != "platform"]
    told.append({"name": device.device.name, "unknown": fields, "components": len(payload["components"])})
print(json.dumps(told))
"""
