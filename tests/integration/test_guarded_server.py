"""A server that asks for credentials, its device, an MQTT client and an operator: all of it with real processes."""

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import harness
import pytest
import test_events

from runtime_edge.formats.credentials import Address, Credentials
from runtime_server.broker.access import Access
from runtime_server.broker.hub import Hub

phones = test_events.phones


def ssc(*arguments, code=0):
    done = subprocess.run(
        [Path(sys.executable).with_name("ssc"), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def healthz(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return answer.status, json.loads(answer.read())["troubles"]
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.loads(exc.read())["troubles"]


def put_table(server, table):
    async def work():
        hub = Hub(Address(server.url, Credentials(nkey=server.state / "server.nkey")), "test")
        await hub.connect()
        try:
            await hub.put_table(table, server.key)
        finally:
            await hub.close()

    asyncio.run(work())


def test_a_device_streams_with_its_key_swaps_tables_is_seen_and_revoked(start, phones, tmp_path, toy_bundle):
    health, mqtt = harness.free_port(), harness.free_port()
    server = start.server("--no-training", "--auth", "--metrics-port", health, "--mqtt-port", mqtt)
    assert healthz(health) == (200, [])
    key = tmp_path / "pi-1.creds"
    ssc("server", "device", "add", "pi-1", "-o", key, "--state", server.state)
    login = {"username": "phone", "password": Access(server.state).add_reader("phone")}
    assert Access(server.state).reload()
    source = harness.write_wav(tmp_path / "audio.wav", 60.0, seed=5)

    with_nothing = start.device(server, "pi-2", source)
    device = start.device(server, "pi-1", source, "--credentials", key, "--loop", "--events", "all")
    device.wait_for_results(4)
    phone = phones(mqtt, **login)
    put_table(server, harness.always(toy_bundle, "rpi4", "two"))
    device.wait_for_cut("two")
    harness.until(lambda: phone.results("pi-1"), "events on the phone")
    with pytest.raises(PermissionError, match="Not authorized"):
        phones(mqtt, username="phone", password="wrong")

    with_nothing.process.wait_for_line("asks for credentials; make them with `ssc server device add`")
    assert "asks for credentials" in ssc("server", "status", "--broker", server.url, code=2)
    operator = ["--broker", server.url, "--credentials", server.state / "server.nkey"]
    table = tmp_path / "table.json"
    table.write_bytes(harness.always(toy_bundle, "rpi4", "one").to_json())
    assert "refuse what is not signed" in ssc("splitter", "push", table, *operator, code=2)
    operator = ["--broker", server.url, "--state", server.state]  # whose keys are found
    assert "pushed to pi-1" in ssc("splitter", "push", table, "--device", "pi-1", *operator)
    device.wait_for_cut("one")
    assert json.loads(ssc("splitter", "explain", "--device", "pi-1", *operator, "--json"))["chosen"] == "one"
    status = json.loads(ssc("server", "status", *operator, "--json"))
    assert set(status["devices"]) == {"pi-1"}
    assert status["server"]["windows"]["pi-1"] > 0

    access = Access(server.state)
    access.revoke("pi-1")
    assert access.reload()
    device.process.wait_for_line("unknown or revoked")
    count = len(device.results())
    device.wait_for_results(count + 4)
    key.write_text(access.add("pi-1"))
    assert access.reload()
    device.process.wait_for_line("broker is back")
    device.process.signal(harness.signal.SIGINT)
    report = device.finish()
    assert report["windows_lost"] == 0
    assert report["windows_replayed"] + report["windows_spooled"] > 0, "what was captured while revoked did not wait"

    server.process.signal(harness.signal.SIGTERM)
    assert "stopped after" in server.process.text()
