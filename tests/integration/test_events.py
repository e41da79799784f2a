"""From a device to a phone: labelled events over MQTT, with a real client, broker, server and device."""

import json
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import sounds
from paho.mqtt import client as mqtt


class Phone:
    """An MQTT client that has subscribed to the events of every device."""

    def __init__(self, port, **login):
        self.events = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        if login:
            self._client.username_pw_set(**login)
        self._subscribed, self._refused = False, ""
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe("evt/#")
        harness.until(lambda: self._subscribed or self._refused, "the subscription")
        if self._refused:
            self.close()
            raise PermissionError(self._refused)

    def _on_connect(self, client, data, flags, reason, properties):
        self._refused = str(reason) if reason.is_failure else ""

    def _on_subscribe(self, *_):
        self._subscribed = True

    def _on_message(self, client, data, message):
        self.events.append((message.topic, json.loads(message.payload)))

    def results(self, device):
        return [event for topic, event in self.events if topic == f"evt/{device}" and event["event"] == "result"]

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def phones():
    """Makes phones and hangs them up at the end."""
    made = []

    def connect(port, **login):
        made.append(Phone(port, **login))
        return made[-1]

    yield connect
    for phone in made:
        phone.close()


def ssc(*arguments):
    done = subprocess.run(
        [Path(sys.executable).with_name("ssc"), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_phone_gets_the_labelled_events_of_a_device(start, phones, tmp_path):
    port = harness.free_port()
    server = start.server("--no-training", "--mqtt-port", port)
    clips = sounds.write_clips(tmp_path / "clips")
    ssc("server", "label", clips, "--state", server.state, "--push", "--broker", server.url, "-o", tmp_path / "h.json")
    phone = phones(port)
    source = sounds.write_turns(tmp_path / "turns.wav", 6)
    quiet, all_of_it = (
        start.device(server, name, source, *options)
        for name, options in (("pi-labels", ["--event-threshold", "0.9"]), ("pi-all", ["--events", "all"]))
    )
    off = start.device(server, "pi-off", source, "--events", "off")
    for device in (quiet, all_of_it, off):
        device.finish()

    by_window = {result["window"]: result for result in quiet.results()}
    harness.until(lambda: len(phone.results("pi-all")) == len(all_of_it.results()), "all events")
    events = phone.results("pi-labels")
    assert phone.results("pi-off") == []
    assert len(events) > len(by_window) / 2
    assert {label for event in events for label in event["detected"]} == set(sounds.LABELS)
    for event in events:
        result = by_window[event["window"]]
        assert "embedding" not in event
        assert event["device"] == "pi-labels"
        assert event["labels"] == result["labels"]
        assert event["detected"] == [label for label, score in result["labels"].items() if score >= 0.9]
        expected = sounds.heard(event["window"])
        assert expected in (None, event["detected"][0])
    changes = [event for topic, event in phone.events if topic == "evt/pi-labels" and event["event"] in ("on", "off")]
    for label in sounds.LABELS:
        own = [event for event in changes if event["label"] == label]
        assert [event["event"] for event in own] == ["on", "off"] * (len(own) // 2)
        assert own, "each turn of a label is long enough"
        assert {event["head_generation"] for event in own} == {by_window[own[0]["window"]]["head_generation"]}
    told = {event["event"] for topic, event in phone.events if topic == "evt/pi-off"}
    assert not told & {"result", "on", "off"}, "of updates it tells all the same"
    confident = [w for w, result in by_window.items() if max(result["labels"].values()) >= 0.9]
    assert sorted(event["window"] for event in events) == confident


def test_events_are_dropped_while_the_broker_is_away_and_come_again(start, phones, tmp_path, toy_bundle):
    port = harness.free_port()
    server = start.server("--no-training", "--mqtt-port", port)
    source = harness.write_wav(tmp_path / "audio.wav", 3.0, seed=30)
    away = start.device(
        "nats://127.0.0.1:9", "pi-away", source, "--events", "all", "--bundle", toy_bundle.path, "--drain-s", "0"
    )
    assert away.finish()["windows_captured"] == len(away.results()) > 0

    phone = phones(port)
    device = start.device(server, "pi-away", source, "--events", "all")
    device.finish()
    harness.until(lambda: len(phone.results("pi-away")) == len(device.results()), "all events of the second run")
    assert all("labels" not in event for event in phone.results("pi-away")), "there is no head"
