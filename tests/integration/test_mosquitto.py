"""Devices and their events at a user's own Mosquitto, the real one: as Home Assistant finds them, and by its bridge."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import sounds
from home_assistant import checked, value
from paho.mqtt import client as mqtt
from test_events import ssc

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None and not Path("/usr/sbin/mosquitto").exists(),
        reason="mosquitto is not installed: apt-get install mosquitto",
    ),
]


class Mosquitto:
    """The user's broker."""

    def __init__(self, directory: Path, more: str) -> None:
        self.port, self._config, self._log = harness.free_port(), directory / "mosquitto.conf", directory / "m.log"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{more}\n")
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
            self._process = subprocess.Popen([program, "-c", str(self._config)], stdout=log, stderr=log)
        harness.until(self._listens, "mosquitto listens")

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            return True
        except OSError:
            assert self._process.poll() is None, self._log.read_text()
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"


class Listener:
    """A client of that broker: Home Assistant, or anybody else."""

    def __init__(self, port: int) -> None:
        self.heard: list[mqtt.MQTTMessage] = []
        self.ready = False
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe([("#", 1)])
        self._client.on_subscribe = lambda *_: setattr(self, "ready", True)
        self._client.on_message = lambda client, data, message: self.heard.append(message)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        harness.until(lambda: self.ready, "the subscription")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.disconnect()
        self._client.loop_stop()

    def latest(self, topic: str) -> str | None:
        """What was heard there last."""
        found = [message.payload.decode() for message in list(self.heard) if message.topic == topic]
        return found[-1] if found else None

    def states(self, topic: str) -> list[str]:
        return [json.loads(m.payload)["state"] for m in list(self.heard) if m.topic == topic and m.payload]


@pytest.fixture
def mosquitto(tmp_path):
    """`mosquitto(config)` starts one."""
    made = []

    def make(config="allow_anonymous true"):
        made.append(Mosquitto(tmp_path, config))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def bridge(tmp_path):
    """`bridge(server, url)` runs `ssc server mqtt`."""
    made = []

    def start(server, url, *options):
        log = tmp_path / "mqtt.log"
        made.append(harness.Process(log, "server", "mqtt", url, "--state", server.state, *options))
        seen = log.read_text().count("publishing at")
        harness.until(lambda: log.read_text().count("publishing at") > seen or not made[-1].running, "publishing")
        assert made[-1].running, log.read_text()
        return made[-1]

    yield start
    for one in made:
        one.signal(signal.SIGKILL)


def with_head(start, tmp_path, *options):
    server = start.server("--no-training", *options)
    clips = sounds.write_clips(tmp_path / "clips")
    ssc("server", "label", clips, "--state", server.state, "--push", "-o", tmp_path / "h.json")
    return server


def test_home_assistant_finds_devices_and_their_labels_and_hears_them(start, mosquitto, bridge, tmp_path):
    server, user = with_head(start, tmp_path), mosquitto()
    running = bridge(server, user.url)
    source = sounds.write_turns(tmp_path / "turns.wav", 4)
    with Listener(user.port) as home:
        device = start.device(server, "pi-1", source, "--event-hold-s", "0.5", "--event-min-s", "0.5")
        harness.until(lambda: home.latest("streamsplit/pi-1/status") == "online", "the device is there")
        device.finish()
        for label in sounds.LABELS:
            place = f"streamsplit/pi-1/label/{label}"
            harness.until(lambda place=place: home.states(place)[-1:] == ["OFF"] and "ON" in home.states(place), place)
        events = [json.loads(m.payload) for m in home.heard if m.topic == "streamsplit/pi-1/event"]
        assert {(event["kind"], event["label"]) for event in events if "label" in event} == {
            (kind, label) for kind in ("on", "off") for label in sounds.LABELS
        }
        generation = device.results()[-1]["head_generation"]
        assert {event["head_generation"] for event in events if "label" in event} == {generation}

    with Listener(user.port) as later:  # Home Assistant after a restart: all of it is retained
        topic = "homeassistant/device/streamsplit-pi-1/config"
        found = checked(topic, harness.until(lambda: later.latest(topic), topic))
        assert {one.name for one in found.components.values()} >= set(sounds.LABELS)
        for component in found.components.values():
            place = component.state_topic
            value(component.value_template, harness.until(lambda place=place: later.latest(place), place))
        assert [later.latest(one.topic) for one in found.availability] == ["online", "online"]
        running.signal(signal.SIGKILL)
        harness.until(lambda: later.latest("streamsplit/status") == "offline", "the last will")
        bridge(server, user.url)
        harness.until(lambda: later.latest("streamsplit/status") == "online", "the bridge is back")


def test_a_bridge_tells_all_of_it_again_to_a_broker_that_has_forgotten_it_and_says_when_it_ends(
    start, mosquitto, bridge, tmp_path
):
    server, user = start.server("--no-training"), mosquitto("allow_anonymous true\npersistence false")
    running = bridge(server, user.url)
    with Listener(user.port) as home:
        start.device(server, "pi-1", sounds.write_turns(tmp_path / "turns.wav", 2)).finish()
        harness.until(lambda: home.latest("streamsplit/pi-1/status") == "online", "the device is there")
    user.stop()
    user.start()
    with Listener(user.port) as home:
        harness.until(lambda: home.latest("streamsplit/pi-1/status") == "online", "all of it is told again")
        running.signal(signal.SIGTERM)
        harness.until(lambda: home.latest("streamsplit/status") == "offline", "it says that it ends")
        assert home.latest("streamsplit/pi-1/status") == "offline"
    harness.assert_no_traceback(tmp_path)


def refused(server, url):
    """What `ssc server mqtt` says of an address that does not let it in."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ssc"), "server", "mqtt", url, "--state", server.state],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_what_does_not_let_the_bridge_in_is_told_in_one_line(quiet_server, mosquitto):
    user = mosquitto("allow_anonymous false")
    said = refused(quiet_server, f"mqtt://ha:secret@127.0.0.1:{user.port}")
    assert re.search(r"mqtt://127.0.0.1:\d+: it refuses the connection \(Not authorized\); give a user", said)
    assert "secret" not in said
    assert "nothing answers there" in refused(quiet_server, f"mqtt://127.0.0.1:{harness.free_port()}")


def test_the_servers_own_broker_takes_it_too(start, bridge, tmp_path):
    """Where nobody has a Mosquitto: retained messages and the last will are the broker's MQTT's."""
    port = harness.free_port()
    server = with_head(start, tmp_path, "--mqtt-port", port)
    running = bridge(server, f"mqtt://127.0.0.1:{port}")
    start.device(server, "pi-1", sounds.write_turns(tmp_path / "turns.wav", 2)).finish()
    topic = "homeassistant/device/streamsplit-pi-1/config"
    with Listener(port) as home:
        checked(topic, harness.until(lambda: home.latest(topic), topic))
        running.signal(signal.SIGKILL)
        harness.until(lambda: home.latest("streamsplit/status") == "offline", "the last will")


def test_a_bridge_of_mosquittos_own_as_documented_brings_the_events(start, mosquitto, tmp_path):
    """Its configuration is that of the page, with this machine's place and password."""
    port, page = harness.free_port(), (ROOT / "docs" / "events.md").read_text()
    server = with_head(start, tmp_path, "--mqtt-port", port, "--auth")
    ssc("server", "device", "add", "pi-1", "--state", server.state, "-o", tmp_path / "pi-1.creds")
    said = ssc("server", "device", "add", "phone", "--reader", "--state", server.state)
    password = re.search(r"password (\S+)", said)[1]
    config = re.search(r"```conf\n(connection .*?)```", page, re.DOTALL)[1]
    for ours, here in {"gateway:1883": f"127.0.0.1:{port}", "PASSWORD": password}.items():
        assert ours in config
        config = config.replace(ours, here)
    user = mosquitto(f"allow_anonymous true\n{config}")
    with Listener(user.port) as home:
        device = start.device(
            server, "pi-1", sounds.write_turns(tmp_path / "turns.wav", 4), "--credentials", tmp_path / "pi-1.creds"
        )
        harness.until(lambda: '"event":"on"' in str(home.latest("evt/pi-1")) or not device.process.running, "events")
        device.finish()
        kinds = [json.loads(message.payload)["event"] for message in home.heard if message.topic == "evt/pi-1"]
        assert {"on", "result"} <= set(kinds)
