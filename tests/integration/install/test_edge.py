"""The extra `edge`: what the guide and the page on operation do on a device, with a server that asks for its key."""

import json

import harness
import numpy as np
import pytest
import soundfile
from installed import Terminal, ssc

EXTRAS = "edge"
BRINGS = {"edge", "audio"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def device(toy_terminal, start) -> Terminal:
    """A terminal beside the key of device pi-1, whose server runs elsewhere."""
    server = start.server("--no-training", "--auth")
    toy_terminal.port = server.port
    ssc("server", "device", "add", "pi-1", "--state", server.state, "-o", toy_terminal.directory)
    return toy_terminal


def results(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_a_bundle_is_tried_measured_and_run_without_a_server(toy_terminal):
    terminal, here = toy_terminal, toy_terminal.directory
    assert "self-test of onnx-fp32" in terminal.types("ssc doctor bundle/")
    terminal.types("ssc profile bundle/ --target rpi4 -o profile.json")
    assert (here / "profile.json").stat().st_size > 0
    terminal.types("ssc bench device bundle/ --target rpi4 -o device.json")
    measured = json.loads((here / "device.json").read_text())
    assert {row["variant"] for row in measured["variants"]} == {"onnx-fp32"}
    found = results(terminal.types("ssc edge run --bundle bundle/ --source file.wav --no-realtime --results -"))
    assert {result["finished"] for result in found} == {"device"}
    samples = soundfile.info(here / "file.wav").frames
    assert len(found) == (samples - harness.WINDOW) // harness.HOP + 1
    assert np.isclose([np.linalg.norm(result["embedding"]) for result in found], 1.0, atol=1e-2).all()

    terminal.types("ssc edge install bundle/ --state ssc-edge")
    both = results(terminal.types("ssc edge run --bundle bundle/ --source recordings/ --no-realtime --results -"))
    assert {result["file"] for result in both} == {"recordings/0.wav", "recordings/1.wav"}


def test_a_configuration_is_written_and_checked(terminal):
    terminal.types("ssc edge config > ssc-edge.toml")
    file = terminal.directory / "ssc-edge.toml"
    file.write_text(file.read_text().replace('# source = "mic"', 'source = "mic"'))
    assert '\nsource = "mic"' in terminal.types("ssc edge config ssc-edge.toml")
    file.write_text("spool_mb = 0")
    assert "ssc-edge.toml: spool_mb" in terminal.types("ssc edge config ssc-edge.toml", code=2)


def test_a_device_plays_recordings_and_says_how_it_is(device):
    own = {"--broker ...": f"--broker nats://127.0.0.1:{device.port} --device pi-1 --credentials pi-1.creds"}
    endless = "ssc edge run --broker ... --source recordings/ --loop --results results.jsonl --report report.json"
    log = device.directory / "results.jsonl"
    with device.running(endless, "", "-v", own):
        harness.until(lambda: log.exists() and b'"finished":"server"' in log.read_bytes(), "an answer of the server")
        harness.until((device.directory / "ssc-edge" / "status.json").exists, "a status")
        assert "pi-1" in device.types("ssc edge status")
        elsewhere = {"/var/lib/ssc-edge": "ssc-edge"}
        device.types("ssc edge status --state /var/lib/ssc-edge", swaps=elsewhere)
        said = json.loads(device.types("ssc edge status --state /var/lib/ssc-edge --json", swaps=elsewhere))
        assert said["healthy"]
        assert said["report"]["windows_lost"] == 0
    report = json.loads((device.directory / "report.json").read_text())
    assert report["windows_lost"] == 0
    device.types("ssc edge status", code=1)


def test_a_device_listens_to_standard_input(device):
    own = {"...": f"nats://127.0.0.1:{device.port} --device pi-1 --credentials pi-1.creds"}
    audio, _ = soundfile.read(device.directory / "file.wav", dtype="int16")
    printed = device.types(
        "ssc edge run --broker ... --source - --stdin-rate 16000", "--results -", own, sends=audio.tobytes()
    )
    assert len(results(printed)) == (len(audio) - harness.WINDOW) // harness.HOP + 1


def test_a_recording_at_any_rate_is_played_and_every_window_counted(environment, start, quiet_server, tmp_path):
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=13, rate=44_100, channels=2)
    device = start.device(quiet_server, "pi-installed", source, "--no-realtime", script=environment.script)
    report = device.finish()

    samples = round(soundfile.info(source).duration * harness.SAMPLE_RATE)
    expected = (samples - harness.WINDOW) // harness.HOP + 1
    assert abs(report["windows_captured"] - expected) <= 1
    assert report["windows_acked"] == report["windows_captured"]
    assert report["torch_imported"] is False
    assert np.isclose([np.linalg.norm(r["embedding"]) for r in device.results()], 1.0, atol=1e-2).all()
    harness.until(lambda: quiet_server.counted("pi-installed") == report["windows_captured"], "windows counted")
