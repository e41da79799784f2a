"""A device as a service: what it tells systemd, its state directory, Prometheus and whoever asks how it is."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import harness
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime_edge.config import DeviceConfig
from runtime_edge.device.device import Device
from runtime_edge.device.sinks import CallbackSink
from runtime_edge.errors import SourceError, UsageError
from runtime_edge.inference.engine import Engine
from runtime_edge.sd_notify import Notifier
from runtime_edge.service.status import read_status

SSC = Path(sys.executable).with_name("ssc")


@pytest.fixture
def source(tmp_path):
    return harness.write_wav(tmp_path / "audio.wav", 4.0, seed=33)


def status(state, *arguments):
    """(exit code, output) of `ssc edge status`."""
    done = subprocess.run([SSC, "edge", "status", "--state", state, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {(s.name, s.labels.get("cut") or s.labels.get("stage")): s.value for f in families for s in f.samples}


def test_a_device_started_from_a_file_is_watched_measured_and_asked_how_it_is(
    quiet_server, manager, source, tmp_path, monkeypatch
):
    state = tmp_path / "service"
    config = tmp_path / "ssc-edge.toml"
    config.write_text(
        f'device = "pi-service"\nbroker = "{quiet_server.url}"\nsource = "{source}"\nstate = "{state}"\nloop = true\n'
        'metrics_port = 0\nlog_format = "json"\nlog_level = "info"\n'
    )
    for name, value in manager.environment.items():
        monkeypatch.setenv(name, value)
    process = harness.Process(tmp_path / "service.log", "edge", "run", "--config", config)
    try:
        harness.until(lambda: "READY=1" in manager.heard, "READY=1")
        harness.until(lambda: status(state)[0] == 0, "healthy")
        harness.until(lambda: json.loads(status(state, "--json")[1])["report"]["windows_acked"] > 3, "acks")
        said = json.loads(status(state, "--json")[1])
        assert said["healthy"] is True
        assert said["device"] == "pi-service"
        assert said["pid"] == process.pid
        assert said["uplink"]["connected"] is True
        assert said["report"]["windows_lost"] == 0
        assert set(said["stage_ms"]) >= {"wait", "prefix", "encode", "spool", "publish"}
        published = ("ssc_edge_stage_seconds_count", "publish")
        later = said["report"]["windows_captured"] + 1
        harness.until(lambda: scrape(said["metrics_port"]).get(published, 0) >= later, "metrics of a later status")
        found = scrape(said["metrics_port"])
        assert found["ssc_edge_connected", None] == 1
        assert found["ssc_edge_stage_seconds_count", "prefix"] >= found["ssc_edge_stage_seconds_count", "publish"] > 3
        assert found["ssc_edge_windows_captured_total", None] >= said["report"]["windows_captured"]
        assert found["ssc_edge_resident_memory_bytes", None] > 20e6
        assert sum(value for (name, cut), value in found.items() if name == "ssc_edge_cut_total" and cut) > 3

        second = subprocess.run([SSC, "edge", "run", "--config", config], capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert second.stderr.splitlines()[-1].endswith("another device runs from this state directory")

        process.signal(signal.SIGTERM)
        heard = manager.heard
        harness.until(lambda: heard[-1] == "STOPPING=1", "the last word")
        assert heard.count("WATCHDOG=1") > 3
        assert any(message.startswith("STATUS=generation 1, cut ") for message in heard)
        code, words = status(state)
        assert code == 1
        assert "not running: it was stopped" in words
        lines = [json.loads(line) for line in process.text().splitlines() if line.startswith("{")]
        assert any(line["message"].startswith("metrics on http://127.0.0.1:") for line in lines)
    finally:
        process.signal(signal.SIGKILL)


@pytest.mark.parametrize("options", [(), ("--no-realtime",)], ids=["live", "read to its end"])
def test_a_device_whose_pipe_has_fallen_silent_says_how_it_is_and_ends_when_it_is_told_to(toy, tmp_path, options):
    state = tmp_path / "state"
    command = [SSC, "edge", "run", "--bundle", toy / "bundle", "--source", "-", "--state", state, *options]

    def captured(state):
        said = read_status(state)
        return 0 if said is None else said.report["windows_captured"]

    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            process.stdin.write(bytes(8192))
            process.stdin.flush()
            harness.until(lambda: captured(state), "a window of the silent pipe in the status")
            process.send_signal(signal.SIGTERM)
            assert process.wait(harness.PATIENCE_S) == 0
        finally:
            process.kill()
    assert read_status(state).ended == "it was stopped"


def test_a_device_that_is_killed_is_known_to_be_gone_and_starts_again_at_once(toy, source, tmp_path):
    def start():
        return harness.Process(
            tmp_path / "killed.log", "edge", "run", "--bundle", toy / "bundle", "--source", source, "--loop",
            "--state", tmp_path / "state",
        )  # fmt: skip

    process = start()
    try:
        harness.until(lambda: status(tmp_path / "state")[0] == 0, "healthy")
        process.signal(signal.SIGKILL)
        code, words = status(tmp_path / "state")
        assert code == 1
        assert "ended without a word" in words
        process = start()
        harness.until(lambda: status(tmp_path / "state")[0] == 0, "healthy again")
    finally:
        process.signal(signal.SIGKILL)


def test_a_stuck_engine_lets_the_watchdog_fire_and_one_that_goes_on_does_not(
    toy, manager, source, tmp_path, monkeypatch
):
    free = threading.Event()
    free.set()
    run = Engine.run

    def sometimes_stuck(self, *arguments):
        free.wait()
        return run(self, *arguments)

    monkeypatch.setattr(Engine, "run", sometimes_stuck)
    config = DeviceConfig("pi-1", str(source), tmp_path / "state", "rpi4", bundle=toy / "bundle", loop=True)

    async def work():
        results = []
        device = Device(config, [CallbackSink(results.append)], Notifier(manager.environment))
        task = asyncio.create_task(device.run())
        await harness.eventually(lambda: len(results) >= 3)
        free.clear()
        await asyncio.sleep(1.0)  # what was under way has ended
        before = len(manager.heard)
        await asyncio.sleep(2.0)
        stuck = manager.heard[before:]
        free.set()
        await harness.eventually(lambda: "WATCHDOG=1" in manager.heard[before:])
        device.stop()
        await task
        return stuck

    stuck = asyncio.run(work())
    assert "WATCHDOG=1" not in stuck


def test_the_last_word_of_a_device_whose_source_fails_is_the_reason(toy, tmp_path):
    config = DeviceConfig("pi-1", str(tmp_path), tmp_path / "state", "rpi4", bundle=toy / "bundle")
    (tmp_path / "no.wav").write_bytes(b"not audio")
    with pytest.raises(SourceError, match="none of its 1 audio files"):
        asyncio.run(Device(config, []).run())
    assert "none of its 1 audio files" in read_status(tmp_path / "state").ended


def test_two_devices_do_not_share_a_state_directory(toy, source, tmp_path):
    config = DeviceConfig("pi-1", str(source), tmp_path / "state", "rpi4", bundle=toy / "bundle", loop=True)

    async def work():
        first = Device(config, [])
        task = asyncio.create_task(first.run())
        await harness.eventually((tmp_path / "state" / "status.json").exists)
        with pytest.raises(UsageError, match="another device runs"):
            await Device(config, []).run()
        first.stop()
        await task

    asyncio.run(work())


def test_an_install_that_has_checked_the_signature_says_so(small_bundle, signing_key, tmp_path):
    key = tmp_path / "signing.pub"
    key.write_text(signing_key.public.to_text())
    installed = subprocess.run(
        [SSC, "edge", "install", small_bundle.path, "--state", tmp_path / "state", "--pub", key],
        capture_output=True, text=True,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    assert "generation 1, onnx-fp32, verified and self-tested" in installed.stdout


def test_a_bundle_that_was_installed_runs_without_a_server_and_without_being_named(toy, source, tmp_path):
    state = tmp_path / "state"
    installed = subprocess.run(
        [SSC, "edge", "install", toy / "bundle", "--state", state], capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    assert "generation 1, onnx-fp32, verified by its digests alone (no key is trusted yet" in installed.stdout
    assert os.stat(state / "bundles.json").st_uid == os.stat(state).st_uid
    ran = subprocess.run(
        [SSC, "edge", "run", "--broker", "nats://127.0.0.1:1", "--source", source, "--no-realtime", "--drain-s", "0",
         "--state", state, "--results", "-"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    windows = [json.loads(line)["window"] for line in ran.stdout.splitlines()]  # and nothing else on that stream
    assert windows == list(range(len(harness.windows_of(source))))
    assert f"{len(windows)} windows" in ran.stderr
    code, words = status(state)
    assert code == 1
    assert "its source has ended" in words
    assert "installed" in words


@pytest.mark.parametrize("damage", ["manifest", "asset", "nothing there"])
def test_a_bundle_that_does_not_hold_is_not_installed(toy, tmp_path, damage):
    bundle = tmp_path / "bundle"
    shutil.copytree(toy / "bundle", bundle)
    if damage == "manifest":
        path = bundle / "manifest.json"
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "asset":
        path = next((bundle / "shared_assets").rglob("*.onnx"))
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    else:
        shutil.rmtree(bundle)
    done = subprocess.run(
        [SSC, "edge", "install", bundle, "--state", tmp_path / "state"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(bundle) in done.stderr
    assert not (tmp_path / "state" / "bundles.json").exists()
