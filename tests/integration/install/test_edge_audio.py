"""The extras `edge,audio`: every documented command that listens to a microphone; ALSA plays one."""

import json

import harness
import numpy as np
import pytest
from installed import ssc
from microphones import RATE, microphone, portaudio_is_missing

EXTRAS = "edge,audio"
BRINGS = {"edge", "audio"}

missing = portaudio_is_missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(missing), reason=f"PortAudio is needed: {missing}"),
]


@pytest.fixture
def device(toy_terminal, start, tmp_path):
    """A terminal beside a microphone and the key of device pi-1, whose server runs elsewhere."""
    server = start.server("--no-training", "--auth")
    ssc("server", "device", "add", "pi-1", "--state", server.state, "-o", toy_terminal.directory)
    noise = np.random.default_rng(3).normal(0, 0.1, 60 * RATE).clip(-1, 1)
    toy_terminal.variables |= microphone(tmp_path, noise)
    toy_terminal.port = server.port
    return toy_terminal


def test_the_doctor_has_nothing_to_mend(toy_terminal):
    assert "PROBLEM" not in toy_terminal.types("ssc doctor")
    assert "self-test of onnx-fp32" in toy_terminal.types("ssc doctor bundle/")
    shown = toy_terminal.types("ssc bench device bundle/ --target rpi4 -o device.json", "--meter none")
    assert "onnx-fp32 on cpu, 1 thread(s)" in shown
    assert (toy_terminal.directory / "device.json").stat().st_size > 0


@pytest.mark.parametrize(
    ("command", "adds"),
    [
        (
            "ssc edge run --broker nats://gateway:4222 --device pi-1 --credentials pi-1.creds --source mic --results -",
            "",
        ),
        (
            "ssc edge run --broker nats://gateway:4222 --credentials pi-1.creds --target rpi4 --device pi-1 "
            "--source mic",
            "--results -",
        ),
        (
            "ssc edge run --broker nats://gateway:4222 --device pi-1 --credentials pi-1.creds --source mic",
            "--results -",
        ),
        (
            "ssc edge run --broker nats://gateway:4222 --credentials pi-1.creds --target rpi4 --source mic",
            "--device pi-1 --results -",
        ),
        (
            "ssc edge run --broker nats://gateway:4222 --target rpi4 --source mic",
            "--device pi-1 --credentials pi-1.creds --results -",
        ),
    ],
)
def test_a_device_listens_to_its_microphone(device, command, adds):
    printed = device.types(command, f"{adds} --max-windows 8")
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert len({result["window"] for result in found}) == len(found) == 8
    assert "server" in {result["finished"] for result in found}


def test_a_device_has_several_brokers(device):
    unused = harness.free_port()
    brokers = {
        "host-1:4222": f"127.0.0.1:{unused}",
        "nats://host-2:4222": f"nats://127.0.0.1:{device.port}",
        ",nats://host-3:4222": "",
    }
    printed = device.types(
        "ssc edge run --broker nats://host-1:4222,nats://host-2:4222,nats://host-3:4222 --source mic",
        "--device pi-1 --credentials pi-1.creds --results - --max-windows 8",
        brokers,
    )
    assert printed.count('"finished"') == 8
