"""What operators push to a server that signs with a key of its own asks for credentials, and what it refuses."""

import json

import harness
import sounds
from test_guarded_server import ssc

from runtime_edge.formats import minisign
from runtime_edge.formats.records.head import read_head


def test_a_head_is_signed_as_the_server_signs_and_a_bundle_under_another_key_is_refused(start, tmp_path, toy):
    key, other = minisign.generate_key(), minisign.generate_key()
    minisign.write_key_pair(key, tmp_path / "ours.key")
    minisign.write_key_pair(other, tmp_path / "other.key")
    server = start.server("--no-training", "--auth", "--key", tmp_path / "ours.key")
    credentials = tmp_path / "pi-1.creds"
    ssc("server", "device", "add", "pi-1", "-o", credentials, "--state", server.state)
    source = sounds.write_turns(tmp_path / "turns.wav", 2)
    device = start.device(server, "pi-1", source, "--credentials", credentials, "--loop")
    device.wait_for_results(2)

    operator = ["--broker", server.url, "--state", server.state]
    refused = ssc("deploy", toy / "bundle", *operator, "--key", tmp_path / "other.key", code=2)
    assert f"trust the server's key {line(key)} and would refuse what {line(other)} signs" in refused
    clips = sounds.write_clips(tmp_path / "clips", clips=3)
    label = ["server", "label", clips, "--push", "--json", "-o", tmp_path / "head.json", *operator]
    assert str(tmp_path / "head.json") not in ssc(*label, "--key", tmp_path / "other.key", code=2)
    assert not (tmp_path / "head.json").exists(), "nothing was embedded for what devices would refuse"
    pushing = harness.Process(tmp_path / "label.log", *label)
    pushing.finish()
    said = pushing.text()
    assert set(json.loads(said[said.index("{") :])["pushed_to"]) == {"rpi4", "m2"}
    read_head(tmp_path / "head.json", key.public)
    harness.until(lambda: device.results()[-1].get("labels"), "a result with labels")
    assert set(device.results()[-1]["labels"]) == set(sounds.LABELS)
    device.process.signal(harness.signal.SIGTERM)
    assert device.finish()["errors"] == {}


def line(secret):
    """A public key as the server prints it."""
    return secret.public.to_text().splitlines()[1]
