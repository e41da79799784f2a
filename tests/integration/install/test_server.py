"""The extra `server`: from README's first command to labels, releases and credentials."""

import csv
import json
import os
import re
import shutil
import socket
from pathlib import Path

import harness
import pytest
import sounds
import test_events

EXTRAS = "server"
BRINGS = {"server", "compile", "edge", "audio", "metrics"}
SERVING = "serving generation"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def device(terminal, *options) -> list[dict]:
    """What a device that plays a recording finds, beside the server."""
    results = terminal.directory / "device.jsonl"
    results.unlink(missing_ok=True)
    terminal.environment.ssc(
        "edge", "run", "--broker", f"nats://127.0.0.1:{terminal.port}", "--device", "pi-1", "--results", results,
        "--source", terminal.directory / "file.wav", "--state", terminal.directory / "ssc-edge", *options,
    )  # fmt: skip
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_the_readme_leads_from_an_encoder_to_answers(terminal):
    here = terminal.directory
    terminal.types("ssc encoder new mobilenet_v3_small --weights speech-and-sounds -o encoder.pt")
    terminal.types("ssc compile encoder.pt --targets rpi4 -o bundle/")
    port = f"--port {terminal.port}"
    with terminal.running("ssc server run encoder.pt bundle/ --state server/ --host 0.0.0.0", SERVING, port) as server:
        assert "only devices added" in server.text()
        terminal.types("ssc server device add pi-1 --state server/ -o pi-1.creds")
        broker = f"--broker nats://127.0.0.1:{terminal.port}"
        assert "20 labels" in terminal.types("ssc server label --head encoder.head.json --push --state server/", broker)
        found = device(terminal, "--credentials", here / "pi-1.creds")
        assert "server" in {result["finished"] for result in found}
        known = json.loads((here / "encoder.head.json").read_text())["labels"]
        assert found[-1]["labels"].keys() <= set(known)
        harness.until(
            lambda: f"{len(found)} windows arrived" in terminal.types("ssc server status --state server/", broker),
            "windows counted",
        )
    assert (here / "encoder.pt").exists()


def test_the_guide_serves_and_looks_after_releases_and_tables(toy_terminal):
    terminal, here = toy_terminal, toy_terminal.directory
    broker = f"--broker nats://127.0.0.1:{terminal.port}"
    shutil.copy(here / "bundle" / "tables" / "rpi4.json", here / "table.json")
    with terminal.running(
        "ssc server run encoder.pt bundle/ --state server/", SERVING, f"--port {terminal.port} --no-training"
    ):
        shutil.copy(here / "server" / "signing.key", here)
        found = device(terminal)
        assert "pi-1" in terminal.types("ssc server status --state server/", broker)
        assert "stable" in terminal.types("ssc server releases list --state server/", broker)
        terminal.types("ssc server config > ssc-server.toml")
        assert "# replicas = 1" in (here / "ssc-server.toml").read_text()
        terminal.types("ssc server dead list --state server/", broker)
        terminal.types("ssc splitter push table.json --device pi-1 --state server/", broker)
        terminal.types("ssc splitter push table.json --device pi-1 --key signing.key", broker)

        assert "hiss" in terminal.types("ssc server label clips/ --state server/ --push", broker)
        (here / "head.json").rename(here / "encoder.head.json")
        said = terminal.types("ssc server label clips/ --head encoder.head.json --push --state server/", broker)
        assert f"{len(sounds.LABELS)} labels, pushed to m2, rpi4" in said
        with (here / "heard.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["device", "time", "seconds", "label"])
            rows.writerows(["pi-1", result["time"], 0.1, sounds.LABELS[n % 2]] for n, result in enumerate(found))
        terminal.types("ssc server label heard.csv --state server/ --push", broker)
        assert json.loads((here / "head.json").read_text())["labels"] == list(sounds.LABELS)

        generation = {"[GENERATION]": "1"}
        terminal.types("ssc server releases pin [GENERATION] --state server/", broker, generation)
        terminal.types("ssc server releases unpin --state server/", broker)
        assert "trial" in terminal.types("ssc server releases promote --state server/", broker, code=2), "there is none"
        terminal.types(
            "ssc server releases rollback [GENERATION] --state server/", broker, {" [GENERATION]": ""}, code=2
        )


def test_a_running_device_is_explained(toy_terminal):
    terminal, here = toy_terminal, toy_terminal.directory
    with terminal.running(
        "ssc server run ... --release-steps 50 --release-s 3600 --release-least-s 600 --release-tolerance -0.01 "
        "--update-mb-per-day 5",
        SERVING,
        f"--port {terminal.port}",
        {"...": "encoder.pt bundle/ --state server/"},
    ):
        process = harness.Process(
            here / "device.log", "edge", "run", "--broker", f"nats://127.0.0.1:{terminal.port}", "--device", "pi-1",
            "--source", here / "recordings", "--loop", script=terminal.environment.script,
        )  # fmt: skip
        try:
            status = ["server", "status", "--json", "--broker", f"nats://127.0.0.1:{terminal.port}"]
            harness.until(lambda: '"pi-1"' in terminal.environment.ssc(*status), "the device")
            assert "log_mel" in terminal.types("ssc splitter explain --device pi-1 --broker nats://gateway:4222")
        finally:
            process.signal(harness.signal.SIGKILL)


def test_the_page_on_events_lets_in_a_device_and_a_phone(toy_terminal):
    terminal, mqtt = toy_terminal, harness.free_port()
    with terminal.running(
        "ssc server run encoder.pt bundle/ --state server/ --host 0.0.0.0 --mqtt-port 1883",
        SERVING,
        f"--port {terminal.port} --no-training",
        {"--mqtt-port 1883": f"--mqtt-port {mqtt}"},
    ):
        terminal.types("ssc server device add pi-1 --state server/ -o pi-1.creds")
        said = terminal.types("ssc server device add phone --reader --state server/")
        (password,) = re.findall(r"password (\S+)", said)
        phone = test_events.Phone(mqtt, username="phone", password=password)
        phone.close()
        assert "pi-1" in terminal.types("ssc server device list --state server/")


@pytest.mark.skipif("SSC_TEST_WEIGHTS" not in os.environ, reason="SSC_TEST_WEIGHTS names no directory of weights")
def test_the_page_on_events_imports_trained_weights(terminal):
    weights = next(Path(os.environ["SSC_TEST_WEIGHTS"]).rglob("mn04_as*.pt"))
    shutil.copy(weights, terminal.directory / "mn04_as_mAP_432.pt")
    terminal.types("ssc encoder import efficientat mn04_as_mAP_432.pt -o encoder.pt")
    terminal.types("ssc compile encoder.pt --targets rpi4 -o bundle/ --calibrate clips/")
    assert (terminal.directory / "bundle" / "manifest.json").exists()


def test_credentials_are_given_and_taken_back(terminal):
    (terminal.directory / "server").mkdir()
    terminal.types("ssc server device add pi-1 --state server/ -o pi-1.creds")
    assert "pi-1" in terminal.types("ssc server device list --state server/")
    terminal.types("ssc server device add phone --reader --state server/")
    assert "revoked pi-1" in terminal.types("ssc server device revoke pi-1 --state server/")
    assert "phone" in terminal.types("ssc server device list --state server/")


def test_the_page_on_deployment_makes_a_service_of_it(toy_terminal):
    terminal, here = toy_terminal, toy_terminal.directory
    said = terminal.types("ssc server install encoder.pt bundle/", "--root image")
    assert "systemctl enable --now ssc-server" in said
    (start,) = re.findall(
        r"^ExecStart=(.*)$", (here / "image/etc/systemd/system/ssc-server.service").read_text(), re.MULTILINE
    )
    assert start.startswith(str(terminal.environment.script))
    state = {"/var/lib/ssc-server": "image/var/lib/ssc-server"}
    terminal.types(
        "ssc server device add pi-1 --state /var/lib/ssc-server -o /var/lib/ssc-server/pi-1.creds", swaps=state
    )
    assert (here / "image/var/lib/ssc-server/pi-1.creds").exists()
    with terminal.running(
        "ssc server run encoder.pt bundle/ --state server/", SERVING, f"--port {terminal.port} --no-training",
        {"server/": "image/var/lib/ssc-server"},
    ):  # fmt: skip
        assert "0 windows arrived" in terminal.types(
            "ssc server status --state /var/lib/ssc-server", swaps={"/var/lib/ssc-server": "image/var/lib/ssc-server"}
        )


def test_a_broker_runs_by_itself(terminal):
    with (
        terminal.running(
            "ssc server broker --state server/ --port 4222", "nats://", "", {"--port 4222": f"--port {terminal.port}"}
        ),
        socket.create_connection(("127.0.0.1", terminal.port), timeout=10) as client,
    ):
        assert client.recv(5) == b"INFO "
